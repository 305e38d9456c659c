"""Our model at its true size, as a function of its weights and its cache that can be traced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from bench.count.launches import Counted
from bench.count.shapes import BlankTensors, Recipe, blank
from bench.count.trace import Graph, as_on_metal, trace
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.table import OFFICIAL, REFERENCE, Numerics, with_kernels
from dsv4_mlx.ops.types import Bank
from dsv4_mlx.synthetic.configs import release_config


@dataclass(frozen=True)
class Step:
    """A traced step and what its inputs are: keys of weights, of cache buffers."""

    graph: Graph
    weights: frozenset[str]
    cache: frozenset[str]
    experts: int  # of a layer; banks are read as far as a token's experts go
    names: dict[str, str]  # key of a weight -> where it is in the model
    launches: dict[str, Launch] = field(default_factory=dict)  # of kernels, by the graph's primitive


def true_config() -> ModelConfig:
    return parse_config(json.dumps(release_config("flash", true_size=True)), "release flash")


def trace_ours(
    config: ModelConfig,
    *,
    context: int,
    rows: int,
    numerics: Numerics = OFFICIAL,
    kernels: bool = False,
    recipe: Recipe = "native",
) -> Step:
    """The step that takes `rows` tokens in after `context` tokens and gives the last one's logits."""
    counted = Counted()
    ops = with_kernels(counted) if kernels else REFERENCE
    model = Transformer(config, BlankTensors(config, recipe), ops, numerics)
    state = model.new_state()
    state.reserve(context + rows)
    state.length = state.reached = context
    buffers = [buffer for layer in state.layers[: config.layers] for buffer in layer.buffers()]
    places = list(slots(model))

    def step(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
        for buffer, array in zip(buffers, arrays, strict=False):
            buffer.buffer = array
        for place, array in zip(places, arrays[len(buffers) :], strict=True):
            place.put(array)
        return [model(tokens, state, last=True), *(buffer.buffer for buffer in buffers)]

    arguments = [blank((1, rows), mx.int32), *(b.buffer for b in buffers), *(p.array for p in places)]
    with as_on_metal():
        graph = trace(step, arguments)
    step_ = whole_step(graph, len(buffers), config.experts, [place.name for place in places])
    return replace(step_, launches=counted.launches)


def whole_step(graph: Graph, buffers: int, experts: int, names: list[str]) -> Step:
    """Arguments of a traced step are tokens, then `buffers` arrays of the cache, then the named weights."""
    keys = [array.key for array in graph.inputs]
    cut = 1 + buffers
    return Step(
        graph,
        frozenset(keys[cut:]),
        frozenset(keys[1:cut]),
        experts,
        dict(zip(keys[cut:], names, strict=True)),
    )


@dataclass
class _Slot:
    """A place in the model that holds a weight."""

    owner: object
    name: str
    array: mx.array

    def put(self, array: mx.array) -> None:
        if isinstance(self.owner, Transformer):
            self.owner.update(tree_unflatten([(self.name, array)]))
        elif self.name.startswith("experts."):  # whichever class holds the banks
            _, bank, part = self.name.split(".")
            changed = getattr(self.owner, bank)._replace(**{part: array})
            object.__setattr__(self.owner, bank, changed)
        else:
            setattr(self.owner, self.name, array)


def named(model: Any) -> list[tuple[str, mx.array]]:
    """Parameters of a module with their paths."""
    return [(name, array) for name, array in dict(tree_flatten(model.parameters())).items()]


def slots(model: Transformer) -> Iterator[_Slot]:
    """Parameters, expert banks, and the tables of hash layers, which are no parameters."""
    for name, array in named(model):
        yield _Slot(model, name, array)
    for block in model.blocks:
        experts = block.ffn.experts
        for bank_name in ("gate_up", "down"):
            bank: Bank = getattr(experts, bank_name)
            for part in ("codes", "scales"):
                yield _Slot(experts, f"experts.{bank_name}.{part}", getattr(bank, part))
        if block.ffn.hashed:
            yield _Slot(block.ffn, "_experts_of", block.ffn._experts_of)
