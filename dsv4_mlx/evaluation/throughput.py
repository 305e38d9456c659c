"""How fast a model runs here: prefill and decode at growing contexts.

One pass walks through the contexts in order. At each it prefills what is missing (the part after the last
context), takes a snapshot, decodes, and goes back. A pass is repeated with a new session; of each figure the
median is reported, with the least and the largest beside it. One short pass before them is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dsv4_mlx import __version__
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.memory import touched_state, touched_weights
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.engine.session_rows import sample
from dsv4_mlx.errors import Progress, UsageError
from dsv4_mlx.machine.limits import description
from dsv4_mlx.paging.stats import LayerStats, total
from dsv4_mlx.weights.load import find_model

REPEATS = 3
WARM_UP = 16  # tokens prefilled and 2 decoded before anything is measured


@dataclass(frozen=True)
class Spread:
    """The median of the repeats, the least and the largest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Frontier:
    """Figures at one context. Speeds in tokens per second, times in seconds, memory in bytes.

    `prefilled`: tokens from the last context to this one, over which the prefill speed is taken.
    `first_token`: from an empty session to the first sampled token of a prompt of `context` tokens.
    """

    context: int
    prefilled: int
    prefill: Spread
    decode: Spread
    first_token: Spread
    active: int
    peak: int
    cache: int
    paging: tuple[LayerStats, ...] = ()  # of all decoded tokens, by layer; empty where nothing is paged


def frontiers(
    engine: Engine,
    contexts: Sequence[int],
    decode: int,
    repeats: int = REPEATS,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Frontier]:
    """Measure at `contexts`, each followed by `decode` tokens. Raises UsageError as check_plan.

    `progress` counts tokens of all passes, computed or decoded; it is told between two measurements' steps.
    """
    check_plan(contexts, decode, engine.context)
    prompt = random_prompt(engine, contexts[-1])
    one = contexts[-1] + decode * len(contexts)
    total = one * repeats
    if progress is not None:
        progress(0, total)
    _pass(engine, prompt, [min(WARM_UP, contexts[0])], min(2, decode), clock, lambda done: None)
    passes = []
    for i in range(repeats):

        def reached(done: int, before: int = i * one) -> None:
            if progress is not None:
                progress(before + done, total)

        passes.append(_pass(engine, prompt, contexts, decode, clock, reached))
    return [_frontier(contexts, i, decode, [one[i] for one in passes]) for i in range(len(contexts))]


def report(engine: Engine, folder: Path, found: Sequence[Frontier], decode: int) -> dict[str, Any]:
    """The figures as plain values, with what they were measured on. `folder` is the model's."""
    config, manifest = engine.config, engine.manifest
    weights = touched_weights(config, manifest, find_model(folder).tensor_bytes())
    element = engine.model.dtype.size
    return {
        "machine": description(),
        "mac": mx.metal.is_available(),
        "versions": {"dsv4-mlx": __version__, "mlx": version("mlx")},
        "model": {"layers": config.layers, "checkpoint": manifest.checkpoint, "recipe": manifest.recipe},
        "passes": REPEATS,
        "decoded": decode,
        **({"experts": str(engine.pager.memory)} if engine.pager is not None else {}),
        "frontiers": [
            {
                "context": one.context,
                "prefilled": one.prefilled,
                "prefill_tokens_per_second": vars(one.prefill),
                "decode_tokens_per_second": vars(one.decode),
                "first_token_seconds": vars(one.first_token),
                "memory_bytes": {"active": one.active, "peak": one.peak, "cache": one.cache},
                "bytes_per_token": {
                    "weights": weights,
                    "state": touched_state(config, one.context, element),
                },
                **({"paging": _paging(one, decode * REPEATS)} if one.paging else {}),
            }
            for one in found
        ],
    }


def check_plan(contexts: Sequence[int], decode: int, context: int) -> None:
    """Raises UsageError unless contexts grow and the last leaves room for `decode` tokens in `context`."""
    if not contexts or contexts[0] < 1 or any(b <= a for a, b in zip(contexts, contexts[1:], strict=False)):
        raise UsageError(f"contexts are {list(contexts)}, expected growing numbers from 1")
    if decode < 1:
        raise UsageError(f"--decode is {decode}, expected at least 1")
    if contexts[-1] + decode > context:
        raise UsageError(
            f"{contexts[-1]} tokens and {decode} decoded ones need a context of {contexts[-1] + decode}, "
            f"this model has {context} here",
            next="use smaller contexts",
        )


def random_prompt(engine: Engine, count: int) -> list[int]:
    """Token ids that are the same each time and far from text: experts are spread as evenly as can be."""
    marked = set(vars(engine.prompts.markers).values())
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, 2 * count + 64)
    return [int(token) for token in ids if int(token) not in marked][:count]


@dataclass(frozen=True)
class _Times:
    prefill: float
    first: float  # since the pass began: prefill of all contexts so far, and one draw
    decode: float
    active: int
    peak: int
    cache: int
    paging: tuple[LayerStats, ...]


def _pass(
    engine: Engine, prompt: list[int], contexts: Sequence[int], decode: int, clock: Callable[[], float],
    reached: Callable[[int], None],
) -> list[_Times]:  # fmt: skip
    session, sampler = engine.session(), Sampler(SamplingOptions(seed=0))
    found, prefilled = [], 0.0
    for i, context in enumerate(contexts):
        known = len(session.tokens)
        mx.reset_peak_memory()
        start = clock()
        session.sync(prompt[:context], partial(_counted, reached, known + i * decode))
        ready = clock()
        token = sample(session, sampler)
        drawn = clock()
        prefilled += ready - start
        point = session.snapshot()
        before = engine.pager.stats() if engine.pager is not None else []
        begun = clock()
        for _ in range(decode):
            session.feed(token)
            token = sample(session, sampler)
        seconds = clock() - begun
        after = engine.pager.stats() if engine.pager is not None else []
        paged = tuple(b - a for a, b in zip(before, after, strict=True))
        memory = mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory()
        session.restore(point)
        reached(context + (i + 1) * decode)
        found.append(_Times(ready - start, prefilled + drawn - ready, seconds, *memory, paged))
    return found


def _counted(reached: Callable[[int], None], before: int, done: int, total: int) -> None:
    reached(before + done)


def _frontier(contexts: Sequence[int], i: int, decode: int, times: Sequence[_Times]) -> Frontier:
    new = contexts[i] - (contexts[i - 1] if i else 0)
    return Frontier(
        context=contexts[i],
        prefilled=new,
        prefill=Spread.of([new / one.prefill for one in times]),
        decode=Spread.of([decode / one.decode for one in times]),
        first_token=Spread.of([one.first for one in times]),
        active=max(one.active for one in times),
        peak=max(one.peak for one in times),
        cache=max(one.cache for one in times),
        paging=tuple(total(list(layer)) for layer in zip(*(one.paging for one in times), strict=True)),
    )


def _paging(one: Frontier, tokens: int) -> dict[str, Any]:
    """Per decoded token: of the whole model, and of each layer."""
    return {
        **_per_token(total(list(one.paging)), tokens),
        "layers": [_per_token(layer, tokens) for layer in one.paging],
    }


def _per_token(counted: LayerStats, tokens: int) -> dict[str, float]:
    return {
        "hit_rate": counted.hit_rate,
        "misses": counted.misses / tokens,
        "advised": counted.advised / tokens,
        "bytes": counted.bytes / tokens,
        "stall_ms": counted.stall / tokens * 1e3,
    }
