"""One long answer, watched: what MLX holds, what Python can reach, what the shapes say there should be."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from small_model import TINY

from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.memory import state_bytes
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.engine.session_rows import sample
from dsv4_mlx.synthetic import small_config, write_checkpoint

PROMPT = [0, *range(20, 60)]


@dataclass(frozen=True)
class Sample:
    """Memory after a step: `tokens` in the session, bytes, and the number of arrays Python can reach."""

    tokens: int
    active: int
    cache: int
    predicted: int
    arrays: int | None


def tiny_engine(folder: Path, context: int) -> Engine:
    """The smallest model through the whole path: official checkpoint, conversion, engine."""
    config: dict[str, Any] = {**small_config(), **TINY}
    write_checkpoint(folder / "official", config, 0)
    convert(folder / "official", folder / "converted", "native")
    return Engine.open(folder / "converted", EngineOptions(context=context))


def watch(
    engine: Engine,
    tokens: int,
    growth: int,
    every: int,
    before: int,
    said: Callable[[Sample], None] | None = None,
) -> list[Sample]:
    """Generate until the session has `tokens` tokens; a sample per step, arrays counted each `every`.

    `before`: what others held when the engine was opened, as `held_by_others` says. It is left out.
    """
    session = engine.session(growth)
    sampler = Sampler(SamplingOptions(seed=1), prompt=len(PROMPT))
    samples = []
    session.advance(PROMPT[0])
    session.sync(PROMPT)
    fixed = 0
    while len(session.tokens) < tokens:
        session.feed(sample(session, sampler))
        session.settle()
        fixed = fixed or fixed_bytes(engine)  # after a decode step: its mask is made by then
        length = len(session.tokens)
        state = state_bytes(engine.config, length, engine.model.dtype.size, growth)
        arrays = reachable_arrays() if length % every == 0 else None
        active = settled_memory() - before
        one = Sample(length, active, mx.get_cache_memory(), fixed + state.total, arrays)
        samples.append(one)
        if said is not None:
            said(one)
    return samples


def watch_alone(folder: Path, context: int, tokens: int, growth: int, every: int) -> list[Sample]:
    """`watch` on the smallest model in a process of its own: other tests' arrays come and go as they like."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_watch_here, (folder, context, tokens, growth, every))


def _watch_here(folder: Path, context: int, tokens: int, growth: int, every: int) -> list[Sample]:
    before = held_by_others()
    return watch(tiny_engine(folder, context), tokens, growth, every, before)


def settled_memory() -> int:
    """Active memory once MLX's own thread has let go of the last step's temporaries.

    It does so a moment after the results are there, and before it begins with what comes next.
    """
    mx.synchronize()
    return mx.get_active_memory()


def held_by_others() -> int:
    """Active memory once everything that can be let go of is."""
    gc.collect()
    return mx.get_active_memory()


def fixed_bytes(engine: Engine) -> int:
    """Bytes, from shapes, of what a model holds whatever the context: weights and masks."""
    model, planner = engine.model, engine.model.planner
    parameters: Any = tree_flatten(model.parameters())  # type: ignore[no-untyped-call]
    arrays: list[mx.array] = [array for _, array in parameters]
    for block in [*model.blocks, *(draft.block for draft in model.drafts)]:
        arrays += [block.ffn["_experts_of"]] if "_experts_of" in block.ffn else []
        experts: Any = block.ffn.experts
        arrays += [experts.records]  # the banks are views of it
    arrays += planner._ring_masks.values()
    return sum(array.nbytes for array in arrays)


def reachable_arrays() -> int:
    """How many mx.arrays anything in the process holds, frames excepted."""
    gc.collect()
    found: set[int] = set()
    # Containers that hold no containers are not tracked by the collector: they are searched as well.
    seen: set[int] = set()
    stack: list[object] = gc.get_objects()
    tracked = {id(item) for item in stack}
    while stack:
        for item in gc.get_referents(stack.pop()):
            if isinstance(item, mx.array):
                found.add(id(item))
            elif isinstance(item, (tuple, dict)) and id(item) not in tracked and id(item) not in seen:
                seen.add(id(item))
                stack.append(item)
    return len(found)
