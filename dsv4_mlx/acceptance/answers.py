"""The whole model: does it matter where a prompt is cut, and does a long answer stay sound?"""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from dsv4_mlx.acceptance.step import Step
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.score import score
from dsv4_mlx.errors import ModelOutputError

TOKENS = 300
CHUNKS = (97, 256)
_BOUND = {mx.float32: 1e-3, mx.bfloat16: 0.1, mx.float16: 0.1}
_GROWTH = 64 << 20  # bytes of memory that a long answer may add beyond its rows


def cuts(engine: Engine) -> Step:
    """Logits of random tokens, cut in other places: median difference, in standard deviations."""
    count = min(TOKENS, engine.context)
    tokens = np.random.default_rng(0).integers(0, engine.config.vocab_size, count).tolist()
    expected = score(engine, tokens)
    bound = _BOUND[engine.model.dtype]
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


def long_answer(engine: Engine, count: int, progress: Callable[[int, int], None]) -> Step:
    """`count` tokens, each the likeliest: every logit a number, memory only for the rows of the state."""
    count = min(count, engine.context - 1)
    session = engine.session()
    begin: tuple[float, int] | None = None
    try:
        logits = session.sync([0])
        for done in range(count):
            logits = session.advance(int(np.argmax(logits)))
            if done == count // 4:  # rows have been allocated, kernels compiled
                begin = time.perf_counter(), mx.get_active_memory()
            progress(done + 1, count)
    except ModelOutputError as error:
        return Step("long answer", False, (error.message,), {"asked": count})
    if begin is None:
        return Step("long answer", None, (f"the context of {engine.context} is too short",))
    seconds, grown = time.perf_counter() - begin[0], mx.get_active_memory() - begin[1]
    allowed = _GROWTH + 8192 * count  # a token's rows take 6,880 bytes at full size and 16 bits
    found = () if grown <= allowed else (f"memory grew by {grown} bytes, expected {allowed} at most",)
    rate = (count - 1 - count // 4) / seconds
    figures = {"tokens": count, "tokens_per_second": round(rate, 3), "memory_grown": grown}
    return Step("long answer", not found, found, figures)
