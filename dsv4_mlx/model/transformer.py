"""The model: token ids and a state in, logits out. Prefill and decode differ in the number of rows only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.block import Block, Chunk
from dsv4_mlx.model.chunk import ChunkPlan, ChunkPlanner
from dsv4_mlx.model.moe import MoE
from dsv4_mlx.model.state import GROWTH, ModelState, Snapshot
from dsv4_mlx.model.step import CompiledSteps, PreparedStep
from dsv4_mlx.model.tensors import Embedding, TensorSource
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.ops.types import BlockInput, Streams


class OutputHead(Module):
    """Streams -> one row -> norm: what the vocabulary projection reads (docs/model.md 3.7)."""

    def __init__(self, config: ModelConfig, prefix: str, source: TensorSource, ops: Ops) -> None:
        super().__init__()
        self.ops, self.hc_eps, self.norm_eps = ops, config.hc_eps, config.norm_eps
        streams, width = config.streams, config.streams * config.hidden_size
        scale = source.vector(f"{prefix}hc_head_scale", (1,))
        self.fn = source.vector(f"{prefix}hc_head_fn", (streams, width)) * scale
        self.base = source.vector(f"{prefix}hc_head_base", (streams,))
        self.norm = source.vector(f"{prefix}norm.weight", (config.hidden_size,))

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, T, C, D] -> [B, T, D], normed."""
        return self.ops.hc_head(x, self.fn, self.base, self.norm, hc_eps=self.hc_eps, norm_eps=self.norm_eps)


class DraftBlock(Module):
    """The MTP block: from the trunk's streams at t and token t + 1 to logits for t + 2 (docs/model.md 3.8).

    One more layer, with a window of its own; embedding and vocabulary projection are the trunk's.
    """

    def __init__(
        self, config: ModelConfig, index: int, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.ops = ops
        self.eps, self.dtype, width = config.norm_eps, source.dtype, config.hidden_size
        self.e_proj = source.linear(f"{prefix}.e_proj", (width, width))
        self.h_proj = source.linear(f"{prefix}.h_proj", (width, width))
        self.enorm = source.vector(f"{prefix}.enorm.weight", (width,))
        self.hnorm = source.vector(f"{prefix}.hnorm.weight", (width,))
        self.block = Block(config, index, prefix, source, ops, numerics)
        self.head = OutputHead(config, f"{prefix}.", source, ops)
        self.index = index

    def __call__(
        self, x: mx.array, embedded: mx.array, tokens: mx.array, state: ModelState, plan: ChunkPlan
    ) -> mx.array:
        """Streams x [B, T, C, D] of positions t, embedded [B, T, D] and tokens [B, T] of t + 1 -> streams."""
        embedding = self.e_proj(mx.fast.rms_norm(embedded, self.enorm, self.eps).astype(self.dtype))
        hidden = self.h_proj(mx.fast.rms_norm(x, self.hnorm, self.eps).astype(self.dtype))
        x = (hidden + embedding[..., None, :]).astype(mx.float32)
        return self.ops.hc_post(self.block(Streams(x), tokens, state.layers[self.index], plan))


# (chunk, layer): this layer's state has taken this chunk in, and no later one
OnLayer = Callable[[int, int], None]


class LayerSchedule(Protocol):
    """How consecutive chunks go through the layers. Whoever pages experts brings another of the same bits."""

    @property
    def chunks_per_step(self) -> int:
        """How many chunks of a prefill may be handed over at once."""

    @property
    def traceable(self) -> bool:
        """Whether the host reads nothing while a step goes through."""

    def __call__(
        self, blocks: Sequence[Block], chunks: Sequence[Chunk], state: ModelState, on_layer: OnLayer
    ) -> list[Streams]:
        """The streams [B, T, C, D] of each chunk after the last block."""


WIDE = 32  # rows of a chunk from which on the temporaries of its layers are many
# (ends, state): a part of a wide chunk's work leaves these streams, and these buffers of the state
Border = Callable[[list[mx.array], list[mx.array]], None]


def _no_border(ends: list[mx.array], state: list[mx.array]) -> None: ...


def one_behind() -> Border:
    """Queues each part, and waits for the one before it: two at most are in memory, and the GPU has work.

    With command buffers of many operations MLX would queue a whole chunk, and hold all its temporaries.
    """
    before: list[mx.array] = []

    def border(ends: list[mx.array], state: list[mx.array]) -> None:
        nonlocal before
        mx.async_eval(ends, state)
        mx.eval(before)
        before = ends  # not the state: a buffer that somebody holds is copied when it is written to

    return border


def arrays_of(found: Streams | BlockInput) -> list[mx.array]:
    """Every array in it."""
    return [part for part in dict(tree_flatten(found)).values() if isinstance(part, mx.array)]


class ChunkMajor:
    """A chunk through all blocks, then the next. `borders` gives, for a chunk, who is told of its layers."""

    chunks_per_step, traceable = 1, True

    def __init__(self, borders: Callable[[], Border] = lambda: _no_border) -> None:
        self._borders = borders

    def __call__(
        self, blocks: Sequence[Block], chunks: Sequence[Chunk], state: ModelState, on_layer: OnLayer
    ) -> list[Streams]:  # [B, T, C, D] of each chunk
        found = []
        for i, (streams, tokens, plan) in enumerate(chunks):
            border = self._borders() if tokens.shape[1] >= WIDE else _no_border

            def on_attended(layer: int, _: int, entry: BlockInput, border: Border = border) -> None:
                border(arrays_of(entry), state.layers[layer].arrays())

            for layer, block in enumerate(blocks):
                chunk, attended = Chunk(streams, tokens, plan), partial(on_attended, layer)
                (streams,) = block.forward_chunks([chunk], state.layers[layer], attended)
                on_layer(i, layer)
                border(arrays_of(streams), [])
            found.append(streams)
        return found


class Transformer(Module):
    """DeepSeek V4. Built from a source of tensors, which it takes one by one under their official names."""

    def __init__(self, config: ModelConfig, source: TensorSource, ops: Ops, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.ops, self.dtype = config, ops, source.dtype
        table = (config.vocab_size, config.hidden_size)
        self.embed = Embedding(source.linear("embed", table), mx.float32)
        self.blocks = [Block(config, i, f"layers.{i}", source, ops, numerics) for i in range(config.layers)]
        self.head = OutputHead(config, "", source, ops)
        self.vocabulary = source.linear("head", table)
        self.drafts = [
            DraftBlock(config, config.layers + i, f"mtp.{i}", source, ops, numerics)
            for i in range(config.draft_blocks)
        ]
        self.planner = ChunkPlanner(config)
        self.schedule: LayerSchedule = ChunkMajor()
        self.compiled = CompiledSteps(config, self.planner, self._step_through)
        # Kernels leave MLX nothing to fuse. References it would fuse: on a CPU by a C++ compiler, for half a
        # minute, and another order of operations may give other bits.
        self.replays = mx.metal.is_available() and ops.name == "kernels"

    def use(self, schedule: LayerSchedule) -> None:
        """Chunks go through the layers by `schedule` from now on: other times, the same bits."""
        self.schedule = schedule

    def use_ops(self, ops: Ops) -> None:
        """Compute with `ops` from the next step on: other bits. Weights are held as the first ones asked."""
        for part in self.modules():
            if isinstance(part, MoE):
                part.use_ops(ops)
            elif hasattr(part, "ops"):
                part.ops = ops

    @property
    def chunks_per_step(self) -> int:
        """How many chunks of a prefill may be handed over at once."""
        return self.schedule.chunks_per_step

    def new_state(self, batch: int = 1, growth: int = GROWTH) -> ModelState:
        """The state before the first token; its row buffers grow by `growth` tokens."""
        return ModelState(self.config, self.dtype, batch, growth)

    def __call__(self, tokens: mx.array, state: ModelState, *, last: bool = False) -> mx.array:
        """tokens int32 [B, T], the next T of the sequence -> float32 logits [B, T, V], or [B, 1, V].

        The state takes the tokens in. Evaluate the logits together with `state.arrays()`.
        """
        return self.logits(self.streams(tokens, state), last=last)

    def step(self, tokens: mx.array, state: ModelState) -> mx.array:
        """tokens int32 [1, 1], evaluated or not, the next of the sequence -> float32 logits [1, 1, V].

        As a call, to the bit; replayed where `replays`. Evaluate them together with `state.arrays()`.
        """
        prepared = self.prepare(tokens, state)
        return self(tokens, state, last=True) if prepared is None else prepared.take()

    def prepare(self, tokens: mx.array, state: ModelState) -> PreparedStep | None:
        """The next step, of tokens int32 [1, 1], to be taken later; None where steps are not replayed.

        The state grows where it must and is not changed otherwise.
        """
        if not (self.replays and self.ops.traceable and self.schedule.traceable):
            return None
        state.reserve(state.length + 1)
        return self.compiled(tokens, state, self.ops)

    def _step_through(self, tokens: mx.array, state: ModelState, plan: ChunkPlan) -> mx.array:
        """tokens [1, 1] -> logits [1, 1, V]; the layers' buffers take the token in, no length is changed."""
        left = self.schedule(self.blocks, [self._entering(tokens, plan)], state, lambda chunk, layer: None)
        return self.logits(self.ops.hc_post(left[0]), last=True)

    def _entering(self, tokens: mx.array, plan: ChunkPlan) -> Chunk:  # [B, T]
        h = self.embed(tokens)
        x = mx.broadcast_to(h[:, :, None], (*h.shape[:2], self.config.streams, h.shape[2]))
        return Chunk(Streams(x), tokens, plan)

    def streams(self, tokens: mx.array, state: ModelState) -> mx.array:
        """tokens int32 [B, T] -> the streams after the last layer [B, T, C, D]; the state takes them in."""
        return self.streams_of([tokens], state)[0][0]

    def streams_of(
        self,
        chunks: Sequence[mx.array],
        state: ModelState,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> tuple[list[mx.array], list[Snapshot]]:
        """Consecutive chunks of tokens [B, T] -> the streams of each, and a snapshot after each but the last.

        As `streams` of one after the other, to the bit; at most `chunks_per_step` of them. `check_cancelled`
        is called between layers. If it raises, the state is to be given back to where it was
        (ModelState.abandon).
        """
        start = state.length
        state.reserve(start + sum(tokens.shape[1] for tokens in chunks))
        entering = []
        for tokens in chunks:
            entering.append(self._entering(tokens, self.planner.plan(start, tokens.shape[1])))
            start += tokens.shape[1]
        rings: list[dict[int, list[mx.array]]] = [{} for _ in chunks[1:]]

        def on_layer(chunk: int, layer: int) -> None:
            check_cancelled()
            if chunk < len(rings):
                rings[chunk][layer] = state.layers[layer].rings()

        left = self.schedule(self.blocks, entering, state, on_layer)
        points = []
        for i, tokens in enumerate(chunks):
            state.advance(tokens.shape[1])
            if i < len(rings):
                points.append(state.snapshot(rings[i]))
        return [self.ops.hc_post(streams) for streams in left], points

    def logits(self, streams: mx.array, *, last: bool = False) -> mx.array:
        """Streams [B, T, C, D] float32 -> float32 logits of every row, or of the last."""
        return self._vocabulary(self.head(streams[:, -1:] if last else streams))

    def _vocabulary(self, rows: mx.array) -> mx.array:  # [B, T, D] -> [B, T, V]
        return self.vocabulary(rows.astype(self.dtype)).astype(mx.float32)

    def draft(
        self, streams: mx.array, tokens: mx.array, state: ModelState, start: int
    ) -> tuple[mx.array, mx.array]:
        """The first draft block over streams of positions start .., tokens the ones that follow them.

        Returns (float32 logits [B, T, V] of the token after next, the block's own streams).
        """
        block = self.drafts[0]
        plan = self.planner.plan(start, tokens.shape[1])
        x = block(streams, self.embed(tokens), tokens, state, plan)
        return self._vocabulary(block.head(x)), x
