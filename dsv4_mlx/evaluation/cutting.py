"""Does it matter where a prompt is cut?"""

from __future__ import annotations

import numpy as np

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.evaluation.long_run import BOUND
from dsv4_mlx.evaluation.score import score
from dsv4_mlx.evaluation.step import Step

TOKENS = 300
CHUNKS = (97, 256)


def cuts(engine: Engine) -> Step:
    """Logits of random tokens, cut in other places: median difference, in standard deviations."""
    count = min(TOKENS, engine.context)
    tokens = np.random.default_rng(0).integers(0, engine.config.vocab_size, count).tolist()
    expected = score(engine, tokens)
    bound = BOUND[engine.model.dtype]
    found, errors = [], {}
    for chunk in CHUNKS:
        off = np.abs(score(engine, tokens, chunk=chunk) - expected).max(axis=-1)
        error = float(np.median(off / expected.std(axis=-1)))
        errors[str(chunk)] = error
        if not error <= bound:
            found.append(
                f"cut every {chunk} tokens: logits differ by {error:.2g}, expected {bound:g} at most"
            )
    return Step("cuts", not found, tuple(found), {"tokens": count, "errors": errors})
