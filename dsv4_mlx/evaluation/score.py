"""Logits after every token of a given sequence."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from dsv4_mlx.engine.chunking import chunk_ends
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.session import Logits, check_logits, check_tokens
from dsv4_mlx.errors import Progress


def score(
    engine: Engine,
    tokens: Sequence[int],
    *,
    chunk: int | None = None,
    decode: int = 0,
    progress: Progress | None = None,
) -> Logits:
    """float32 [T, V]: row t holds the logits after token t. The tokens are used as they are.

    The prefill is cut where `generate` cuts it, or at multiples of `chunk`; the last `decode` tokens are
    fed one by one. Raises InputError, DoesNotFit as Session.sync.
    """
    check_tokens(tokens, engine.config.vocab_size, engine.context)
    prefilled = max(0, len(tokens) - decode)
    marks = chunk_ends(tokens, engine.prompts.markers) if chunk is None else range(chunk, len(tokens), chunk)
    ends = [*(mark for mark in marks if mark < prefilled), prefilled, *range(prefilled + 1, len(tokens) + 1)]
    state = engine.model.new_state()
    rows = []
    start = 0
    for end in ends:
        if end > start:
            logits = engine.model(mx.array([list(tokens[start:end])], mx.int32), state)
            mx.eval(logits, *state.arrays())
            rows.append(np.array(logits[0]))
            check_logits(rows[-1], end - 1)
            start = end
            if progress is not None:
                progress(end, len(tokens))
    return np.concatenate(rows)
