"""Our model at its true size, as a function of its weights and its cache that can be traced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from bench.count.launches import Counted
from bench.count.shapes import BlankTensors, Recipe, blank
from bench.count.trace import Graph, as_on_metal, trace
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.model.block import Block, Chunk
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import Border, ChunkMajor, OnLayer, Transformer, arrays_of
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.table import OFFICIAL, REFERENCE, Numerics, with_kernels
from dsv4_mlx.ops.types import Bank, BlockInput, Streams
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
    borders: tuple[tuple[str, ...], ...] = ()  # of a prefill: keys of what is queued after each layer


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
    together: int = 0,
) -> Step:
    """The step that takes `rows` tokens in after `context` tokens and gives the last one's logits.

    `together`: chunks that go through a layer together, because its experts are paged.
    """
    counted = Counted()
    ops = with_kernels(counted) if kernels else REFERENCE
    borders: list[list[mx.array]] = []
    source = BlankTensors(config, recipe, on_ids=borders.append if together else lambda ids: None)
    model = Transformer(config, source, ops, numerics)

    def note(ends: list[mx.array], state: list[mx.array]) -> None:
        borders.append([*ends, *state])

    model.use(_Paged(together, note) if together else ChunkMajor(lambda: note))
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
        streams, _ = model.streams_of(mx.split(tokens, max(1, together), axis=1), state)
        logits = model.logits(streams[-1], last=True)
        ends = [array for border in borders for array in border]
        return [logits, *(buffer.buffer for buffer in buffers), *ends]

    arguments = [blank((1, rows), mx.int32), *(b.buffer for b in buffers), *(p.array for p in places)]
    with as_on_metal():
        graph = trace(step, arguments)
    step_ = whole_step(graph, len(buffers), config.experts, [place.name for place in places])
    outputs = iter(graph.outputs[1 + len(buffers) :])
    keys = tuple(tuple(next(outputs).key for _ in border) for border in borders)
    return replace(step_, launches=counted.launches, borders=keys)


@dataclass
class _Paged:
    """As paging.schedule reads a prefill: each chunk through a layer's attention, all of them through its
    experts, whose ids go to the host."""

    chunks_per_step: int
    border: Border

    def __call__(
        self, blocks: Sequence[Block], chunks: Sequence[Chunk], state: ModelState, on_layer: OnLayer
    ) -> list[Streams]:
        def on_attended(layer: int, chunk: int, entry: BlockInput) -> None:
            on_layer(chunk, layer)
            last = chunk == len(chunks) - 1
            self.border(arrays_of(entry), state.layers[layer].arrays() if last else [])

        for i, block in enumerate(blocks):
            left = block.forward_chunks(chunks, state.layers[i], partial(on_attended, i))
            chunks = [chunk._replace(streams=one) for chunk, one in zip(chunks, left, strict=True)]
        return [chunk.streams for chunk in chunks]


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
