"""A text through a model, chunk by chunk; through another, or another numerics, and the distance between them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.engine.cuts import cuts
from dsv4_mlx.engine.engine import Engine, EngineOptions
from dsv4_mlx.engine.machine import description
from dsv4_mlx.engine.session import check_logits
from dsv4_mlx.errors import InputError
from dsv4_mlx.evaluation.figures import (
    Bucket,
    Distance,
    distance,
    divergence,
    log_softmax,
    perplexities,
)

Rows = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """`floor`: the distance between the model's own two numerics, official and exact: what two ways of adding
    the same numbers up make of it. A `distance` to a reference near it says nothing about the weights.
    """

    tokens: int
    buckets: tuple[Bucket, ...]
    floor: Distance
    distance: Distance | None
    machine: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    folder: Path, text: str, count: int, options: EngineOptions, reference: Path | None, progress: Progress
) -> Evaluation:
    """The first `count` tokens of `text`. One model is in memory at a time: the logits of the first wait in a
    temporary file of 4 bytes per token and vocabulary entry.

    Raises InputError for a text of fewer than two tokens, or models with other tokenizers.
    """
    exact = replace(options, numerics="exact")
    passes: list[tuple[Path, EngineOptions]] = [(folder, options), (folder, exact)]
    if reference is not None:
        passes.append((reference, options))
    with tempfile.TemporaryDirectory(prefix="dsv4-mlx-eval-") as scratch:
        tokens: list[int] = []
        kept: Rows | None = None
        found: list[Distance] = []
        losses: list[float] = []
        for number, (place, how) in enumerate(passes):
            engine = Engine.open(place, replace(how, context=count))
            own = _tokens(engine, text, count)
            if number and own != tokens:
                raise InputError(
                    "the two models have different tokenizers: their distributions can't be compared",
                    where=reference,
                )
            tokens = own
            if kept is None:
                shape = len(tokens), engine.config.vocab_size
                kept = np.memmap(Path(scratch) / "logits", np.float32, "w+", shape=shape)
            kl, agree = [], []
            for start, rows in _scored(engine, tokens):
                end = start + len(rows)
                if number == 0:
                    kept[start:end] = rows
                    given = tokens[start + 1 : end + 1]
                    log = log_softmax(rows[: len(given)])
                    losses += (-log[np.arange(len(given)), given]).tolist()
                else:
                    # KL is from what is closer to the truth: exact numerics, the reference model
                    a, b = divergence(log_softmax(rows), log_softmax(kept[start:end]))
                    kl.append(a)
                    agree.append(b)
                progress(number * len(tokens) + end, len(passes) * len(tokens))
            if number:
                found.append(distance(np.concatenate(kl), np.concatenate(agree)))
            del engine
        del kept
    return Evaluation(
        tokens=len(tokens),
        buckets=tuple(perplexities(losses)),
        floor=found[0],
        distance=found[1] if reference is not None else None,
        machine=description(),
    )


def _tokens(engine: Engine, text: str, count: int) -> list[int]:
    """Begin of sentence, which is token 0, and the text's own tokens."""
    ids = [0, *engine.prompts.tokenizer.encode(text)][:count]
    if len(ids) < 3:
        raise InputError(
            f"the text has {len(ids) - 1} tokens, expected 2 at least", next="give a longer text"
        )
    return ids


def _scored(engine: Engine, tokens: Sequence[int]) -> Iterator[tuple[int, Rows]]:
    """(position of the first row, logits after each token), cut where `generate` cuts."""
    state, start = engine.model.new_state(), 0
    for end in [*(c for c in cuts(tokens, engine.prompts.markers) if c < len(tokens)), len(tokens)]:
        logits = engine.model(mx.array([list(tokens[start:end])], mx.int32), state)
        mx.eval(logits, *state.arrays())
        rows = np.array(logits[0])
        check_logits(rows, end - 1)
        yield start, rows
        start = end
