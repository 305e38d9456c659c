"""Python's share of a decode step, at the model's true size: `python -m bench.host_time --help`

Processor time, the least of 50. Inside `mx.export_function` MLX traces real Metal kernels on any machine, and
a step that is compiled there is replayed there: nothing is computed, so a weight is one number that is
broadcast to its shape.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any
from unittest import mock

import mlx.core as mx

from bench.count.ours import slots, true_config
from bench.count.shapes import BlankTensors
from bench.count.trace import as_on_metal
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.step import StepKind
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels.launch import metal
from dsv4_mlx.ops.table import OFFICIAL, with_kernels

REPEATS = 50
CONTEXTS = (4096, 1 << 20)
# where in a context of a multiple of 128 tokens: step -> tokens before its end
STEPS = {"nothing closes": 126, "CSA rows close": 121, "CSA and HCA rows close": 129}


def true_model() -> Transformer:
    """All 43 layers, bfloat16 and kernels as on a Mac; weights without memory."""
    config = true_config()
    model = Transformer(config, BlankTensors(config), with_kernels(metal), OFFICIAL)
    for place in list(slots(model)):
        place.put(_broadcast(place.array))
    model.replays = True
    return model


def _broadcast(like: mx.array) -> mx.array:  # [...] as given
    made = mx.broadcast_to(mx.zeros((), like.dtype), like.shape)
    mx.eval(made)
    return made


def state_at(model: Transformer, length: int, capacity: int) -> ModelState:
    """A state of `length` tokens, its buffers evaluated."""
    state = model.new_state(growth=capacity)
    state.reserve(capacity)
    state.length = state.reached = length
    _fresh(state)
    return state


def _fresh(state: ModelState) -> None:
    for layer in state.layers:
        for buffer in layer.buffers():
            buffer.buffer = _broadcast(buffer.buffer)


def least(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Milliseconds of processor time."""
    best = float("inf")
    for _ in range(REPEATS):
        before()
        began = time.process_time_ns()
        made = work()
        best = min(best, (time.process_time_ns() - began) / 1e6)
        del made
    return round(best, 3)


def measured(model: Transformer, capacity: int) -> dict[str, Any]:
    """What a step costs at the end of a context: inputs, their replay, the plain build, a trace."""
    tokens, found = mx.array([[5]], mx.int32), {}
    numbers = model.compiled._numbers
    for name, before in STEPS.items():
        length = capacity - before
        state = state_at(model, length, capacity)
        kind = numbers.kind(length, capacity, model.ops)
        if kind is None:
            raise ValueError(f"a step at position {length} is not traced")
        made, began = model.compiled.made, time.process_time_ns()
        model.step(tokens, state)
        spent, made = (time.process_time_ns() - began) / 1e6, model.compiled.made - made

        places = _places(length)

        def elsewhere(state: ModelState = state, places: Iterator[int] = places) -> None:
            state.length = state.reached = next(places)
            _fresh(state)

        def inputs(state: ModelState = state, kind: StepKind = kind) -> list[mx.array]:
            return numbers.arrays(state.length, kind)

        def replay(state: ModelState = state) -> mx.array:
            return model.step(tokens, state)

        def plain(state: ModelState = state) -> mx.array:
            return model(tokens, state, last=True)

        work = {"inputs": inputs, "inputs and replay": replay, "plain": plain}
        found[name] = {what: least(run, elsewhere) for what, run in work.items()}
        if made:
            found[name]["a trace"] = round(spent / made, 1)
    return found


def _places(length: int) -> Iterator[int]:
    """Positions of one kind of step, not the same one twice in a row."""
    for back in cycle(range(0, length // 4, 128)):
        yield length - back


def graph(model: Transformer, name: str) -> dict[str, float]:
    """Nodes of a step, those that MLX fused, bytes of kernel text that it hashes."""
    capacity, events = CONTEXTS[0], []
    length = capacity - STEPS[name]
    state, numbers = state_at(model, length, capacity), model.compiled._numbers
    kind = numbers.kind(length, capacity, model.ops)
    if kind is None:
        raise ValueError(f"a step at position {length} is not traced")
    given = numbers.arrays(length, kind)
    arrays = [buffer.buffer for layer in state.layers for buffer in layer.buffers()]

    def step(tokens: mx.array, *buffers: mx.array) -> list[mx.array]:
        holders = [buffer for layer in state.layers for buffer in layer.buffers()]
        for holder, array in zip(holders, buffers, strict=True):
            holder.buffer = array
        return [model._step_through(tokens, state, numbers.plan(kind, iter(given))), *state.arrays()]

    copies: list[mx.array] = []

    def contiguous(x: mx.array, allow_col_major: bool = False) -> mx.array:  # MLX can't export it
        copies.append(x)
        return x

    with as_on_metal(), mock.patch.object(mx, "contiguous", contiguous):
        mx.export_function(events.append, step, mx.array([[5]], mx.int32), *arrays)
    nodes = [event for event in events if event["type"] == "primitive"]
    names = Counter(str(node["name"]) for node in nodes)
    text = sum(len(node["arguments"][1]) for node in nodes if node["name"] == "CustomKernel")
    fused = sum(count for name, count in names.items() if name.startswith("Compiled"))
    return {
        "nodes": len(nodes) + len({id(x) for x in copies}),
        "fused": fused,
        "text bytes": text,
        "kernels": names["CustomKernel"],
    }


def figures() -> dict[str, Any]:
    """Every figure, times in milliseconds of this machine."""
    found: dict[str, Any] = {}
    model = true_model()

    def inside(x: mx.array) -> list[mx.array]:
        for context in CONTEXTS:
            found[str(context)] = measured(model, context)
        return [x]

    mx.export_function(lambda event: None, inside, mx.zeros(1))
    return {"milliseconds": found, "graph": {name: graph(true_model(), name) for name in STEPS}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.host_time", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    options = parser.parse_args(arguments)
    found = figures()
    if options.json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return 0
    for context, steps in found["milliseconds"].items():
        for name, times in steps.items():
            print(
                f"{int(context):>9,}  {name:24}", ", ".join(f"{what} {ms} ms" for what, ms in times.items())
            )
    for name, counts in found["graph"].items():
        print(f"{'':9}  {name:24}", ", ".join(f"{what} {count:,}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
