"""A long answer: is every logit a number, does memory stay, does it repeat itself, does a prefill agree?

Does it matter where a prompt is cut?
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx
import numpy as np

from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.language_model import Logits
from dsv4_mlx.engine.memory import state_bytes
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_rows import sample
from dsv4_mlx.evaluation.needles import too_short
from dsv4_mlx.evaluation.report import AcceptanceStep, Bar
from dsv4_mlx.machine.units import rate, size

NumericsName = Literal["official", "exact"]
CUT_TOKENS = 300
CHUNKS = (97, 256)
# Standard deviations of the logits, at the median position. With `official` a value on the edge of two codes
# falls to either side: docs/model.md, 3.0, has what was measured.
BOUND: dict[NumericsName, dict[mx.Dtype, float]] = {
    "exact": {mx.float32: 1e-3, mx.bfloat16: 0.1, mx.float16: 0.1},
    "official": {mx.float32: 0.03, mx.bfloat16: 0.2, mx.float16: 0.2},
}


def cuts(engine: Engine, numerics: NumericsName) -> AcceptanceStep:
    """Logits of random tokens, cut in other places: median difference, in standard deviations.

    `numerics`: those that the engine was opened with.
    """
    count = min(CUT_TOKENS, engine.context)
    tokens = np.random.default_rng(0).integers(0, engine.config.vocab_size, count).tolist()
    expected = score(engine, tokens)
    bound = BOUND[numerics][engine.model.dtype]
    found, errors, same = [], {}, {}
    for chunk in CHUNKS:
        rows = score(engine, tokens, chunk=chunk)
        off = np.abs(rows - expected).max(axis=-1)
        error = errors[str(chunk)] = float(np.median(off / expected.std(axis=-1)))
        same[str(chunk)] = float(np.mean(rows.argmax(axis=-1) == expected.argmax(axis=-1)))
        if not error <= bound:
            found.append(
                f"cut every {chunk} tokens: logits differ by {error:.2g}, expected {bound:g} at most"
            )
    figures = {"tokens": count, "errors": errors, "same_best_token": same}
    return AcceptanceStep(f"cuts, {numerics}", not found, tuple(found), figures)


TOKENS = 20_000
SCORED = 24  # positions that a prefill scores again
LEAK = (
    32 << 20
)  # bytes: more than a step's temporaries that are let go of late, 1.6 KB for each of 20,000 tokens
PERIOD, REPEATED = 256, 512  # a loop: so many tokens in a row, each the one of at most PERIOD tokens before
ASK = "Tell me a long story."


def name_of(numerics: NumericsName) -> str:
    """What the step is called."""
    return f"long answer, {numerics}"


def long_answer(engine: Engine, count: int, bar: Bar, numerics: NumericsName) -> AcceptanceStep:
    """`count` tokens drawn at temperature 1, the end of the turn never; then chunks over the same tokens.

    Memory is compared with the size of the state's rows. A model whose config.json allows fewer tokens goes
    on beyond them: what it says there means nothing, but the arithmetic is the same.
    """
    prompt = engine.prompts.encode(engine.prompts.ask(ASK, "off"))
    total = len(prompt) + count
    short = too_short(engine, total)
    beyond = engine.config.max_context < total
    if short and not beyond:
        return AcceptanceStep(name_of(numerics), None, (short,))
    session = Session(engine.model, total, engine.prompts.markers)
    at = {round(p) for p in np.linspace(len(prompt) + 1, total, SCORED)}
    kept: dict[int, Logits] = {}
    held: list[int] = []
    sampler = Sampler(SamplingOptions(logit_bias={engine.prompts.markers.end: -1000.0}), len(prompt))
    session.sync(prompt)
    begin = time.perf_counter()
    with bar("a long answer", "tokens") as show:
        for done in range(1, count + 1):
            session.feed(sample(session, sampler))
            session.settle()
            if len(session.tokens) in at:
                kept[len(session.tokens)] = session.logits
            if done % 100 == 0 and done >= min(count // 4, 1000):  # rows allocated, kernels compiled
                held.append(_beyond_rows(engine, len(session.tokens)))
            show(done, count)
    seconds = time.perf_counter() - begin
    tokens = session.tokens
    del session
    again = _scored_again(engine, tokens, sorted(kept), bar)
    grown = max(held, default=0) - (held[0] if held else 0)
    errors = [float(np.abs(again[p] - kept[p]).max() / kept[p].std()) for p in sorted(kept)]
    same = float(np.mean([again[p].argmax() == kept[p].argmax() for p in kept]))
    found = _faults(
        tokens[len(prompt) :], grown, float(np.median(errors)), BOUND[numerics][engine.model.dtype]
    )
    figures = {
        "tokens": count, "tokens_per_second": round(count / seconds, 3), "memory_grown": grown,
        "scored_again": len(kept), "error": float(np.median(errors)), "same_best_token": same,
    }  # fmt: skip
    told = [
        f"{count:,} tokens, {rate(count / seconds)} a second; memory beyond the rows grew by {size(grown)}",
        f"a prefill differs by {figures['error']:.2g} standard deviations, best token the same at {same:.0%}",
    ]
    if beyond:
        told.append(f"config.json allows {engine.config.max_context:,}: it went on beyond them")
    return AcceptanceStep(name_of(numerics), not found, found, figures, tuple(told))


def _beyond_rows(engine: Engine, tokens: int) -> int:
    """Bytes that MLX holds now beyond the state of one session; after a moment, when a step is let go of."""
    least = mx.get_active_memory()
    for _ in range(3):
        time.sleep(0.0005)
        least = min(least, mx.get_active_memory())
    return least - state_bytes(engine.config, tokens, engine.model.dtype.size).rows


def _scored_again(
    engine: Engine, tokens: Sequence[int], positions: Sequence[int], bar: Bar
) -> dict[int, Logits]:
    """Logits after that many tokens, from chunks."""
    session = Session(engine.model, len(tokens), engine.prompts.markers)
    found = {}
    with bar("the same tokens in chunks", "tokens") as show:
        for position in positions:
            found[position] = session.sync(tokens[:position])
            show(position, len(tokens))
    return found


def _faults(tokens: Sequence[int], grown: int, error: float, bound: float) -> tuple[str, ...]:
    found = []
    if grown > LEAK:
        found.append(f"memory grew by {grown} bytes beyond the rows of the state, expected {LEAK} at most")
    if not error <= bound:
        found.append(
            f"the logits of decoding and of a prefill of the same tokens differ by {error:.2g} standard "
            f"deviations, expected {bound:g} at most"
        )
    loop = looping(tokens)
    if loop is not None:
        start, period, length = loop
        found.append(
            f"the text repeats itself: from token {start:,} of the answer, {length:,} tokens with a period "
            f"of {period}, though each was drawn at temperature 1"
        )
    return tuple(found)


def looping(tokens: Sequence[int]) -> tuple[int, int, int] | None:
    """(start, period, length) of the longest stretch that repeats, if it has REPEATED tokens or more."""
    ids = np.asarray(tokens)
    best: tuple[int, int, int] | None = None
    for period in range(1, min(PERIOD, len(ids) - 1) + 1):
        breaks = np.flatnonzero(np.append(ids[period:] != ids[:-period], True))
        lengths = np.diff(breaks, prepend=-1) - 1
        at = int(lengths.argmax())
        length = int(lengths[at])
        if length >= REPEATED and (best is None or length > best[2]):
            best = int(breaks[at]) - length + period, period, length
    return best
