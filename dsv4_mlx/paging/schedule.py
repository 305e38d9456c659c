"""How a chunk goes through paged layers: reading at every layer, or in the hope that nothing must be.

*Read per layer*: each learned layer's ids come to the host before its experts run. *Optimistic*: nothing
comes to the host inside the step; every layer computes with what is loaded, and its ids are looked at when
all is done. If a layer lacked an expert, the step goes on from that layer's input as read per layer: the
state's writes are addressed by position, so what was written in hope is written again. Same bits either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from dsv4_mlx.model.block import Block, Chunk
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import WIDE, OnLayer, arrays_of, one_behind
from dsv4_mlx.ops.types import BlockInput, Streams
from dsv4_mlx.paging.paged_experts import FEW_ROWS, OptimisticRun, PagedExperts

OPTIMISTIC_BELOW, READ_ABOVE = 0.25, 0.75  # layers per token that lack an expert
MEMORY = 0.9  # per token: about the last ten count


class StrategySwitch:
    """Which strategy the next step takes: the running number of layers that lack an expert decides. Pure."""

    def __init__(self) -> None:
        self.lacking = 1.0
        self.optimistic = False

    def learn(self, layers: int) -> None:
        """In a step, `layers` layers lacked an expert."""
        self.lacking = MEMORY * self.lacking + (1 - MEMORY) * layers
        if self.lacking < OPTIMISTIC_BELOW:
            self.optimistic = True
        elif self.lacking > READ_ABOVE:
            self.optimistic = False


class PagedSchedule:
    """A model.transformer.LayerSchedule. `before(tokens)`, of each chunk, is called when a step begins.

    Up to `chunks_per_step` chunks of a prefill go through a layer before any goes to the next: attention one
    after the other, the experts of all of them read once.
    """

    traceable = False

    def __init__(
        self,
        layers: Sequence[PagedExperts],
        before: Callable[[Sequence[mx.array]], None],
        chunks_per_step: int,
    ) -> None:
        self._layers, self._before, self.chunks_per_step = layers, before, chunks_per_step
        self.strategy = StrategySwitch()

    def __call__(
        self, blocks: Sequence[Block], chunks: Sequence[Chunk], state: ModelState, on_layer: OnLayer
    ) -> list[Streams]:
        self._before([chunk.tokens for chunk in chunks])
        rows = sum(chunk.tokens.size for chunk in chunks)
        if rows <= FEW_ROWS and len(chunks) == 1 and self.strategy.optimistic:
            return [self._run_optimistically(blocks, chunks[0], state)]
        before = [layer.stats.misses for layer in self._layers]
        found = _read_per_layer(blocks, chunks, state, on_layer, 0)
        if rows <= FEW_ROWS:
            self.strategy.learn(
                sum(layer.stats.misses > n for layer, n in zip(self._layers, before, strict=True))
            )
        return found

    def _run_optimistically(self, blocks: Sequence[Block], chunk: Chunk, state: ModelState) -> Streams:
        optimistic: list[OptimisticRun] = []
        entered, streams = [], chunk.streams
        for layer in self._layers:
            layer.optimistic = optimistic
        try:
            for block, memory in zip(blocks, state.layers, strict=False):
                entered.append(streams)
                streams = block(streams, chunk.tokens, memory, chunk.plan)
            # The last layer's experts go on running while the host looks at the ids.
            mx.async_eval(entered[-1], [run.ids for run in optimistic])  # type: ignore[no-untyped-call]
            mx.async_eval(streams)  # type: ignore[no-untyped-call]
            mx.eval(entered[-1])
        finally:
            for layer in self._layers:
                layer.optimistic = None
        used = [set(np.array(run.ids).ravel().tolist()) for run in optimistic]
        lacking = [i for i, run in enumerate(optimistic) if not run.layer.holds(used[i])]
        first = lacking[0] if lacking else len(optimistic)
        for i, run in enumerate(optimistic[:first]):
            run.layer.confirm(used[i], streams.pending if i == len(optimistic) - 1 else None)
        self.strategy.learn(len(lacking))
        if first < len(optimistic):
            again = chunk._replace(streams=entered[first])
            (streams,) = _read_per_layer(blocks, [again], state, lambda i, layer: None, first)
        return streams


def _read_per_layer(
    blocks: Sequence[Block], chunks: Sequence[Chunk], state: ModelState, on_layer: OnLayer, first: int
) -> list[Streams]:
    """From block `first` on, whose input the chunks hold."""
    border = one_behind()

    def on_attended(layer: int, chunk: int, entry: BlockInput) -> None:
        on_layer(chunk, layer)
        if chunks[chunk].tokens.shape[1] >= WIDE:
            last = chunk == len(chunks) - 1  # the next chunk writes to the same buffers
            border(arrays_of(entry), state.layers[layer].arrays() if last else [])

    for layer in range(first, len(blocks)):
        left = blocks[layer].forward_chunks(chunks, state.layers[layer], partial(on_attended, layer))
        chunks = [chunk._replace(streams=one) for chunk, one in zip(chunks, left, strict=True)]
    return [chunk.streams for chunk in chunks]
