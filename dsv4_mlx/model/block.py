"""One layer: hyper-connection around attention, hyper-connection around the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.attention import Attention
from dsv4_mlx.model.chunk import ChunkPlan
from dsv4_mlx.model.moe import MoE
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import TensorSource
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.ops.types import BlockInput, Streams


class HyperConnection(Module):
    """Mixes C streams into a sublayer's input and its output back into the streams (docs/model.md 3.2)."""

    def __init__(
        self, config: ModelConfig, prefix: str, kind: str, norm: str, source: TensorSource, ops: Ops
    ) -> None:
        super().__init__()
        self.ops, self.iterations = ops, config.sinkhorn_iterations
        self.hc_eps, self.norm_eps, self.dtype = config.hc_eps, config.norm_eps, source.dtype
        streams, width = config.streams, config.streams * config.hidden_size
        mixes = (2 + streams) * streams
        scale = source.vector(f"{prefix}.{kind}_scale", (3,))
        fn = source.vector(f"{prefix}.{kind}_fn", (mixes, width))
        # One scale for each of pre, post and comb, folded into the rows it multiplies.
        parts = (streams, streams, streams * streams)
        spread = mx.concatenate([mx.broadcast_to(scale[i], (n,)) for i, n in enumerate(parts)])
        self.fn = fn * spread[:, None]
        self.base = source.vector(f"{prefix}.{kind}_base", (mixes,))
        self.norm = source.vector(f"{prefix}.{norm}.weight", (config.hidden_size,))

    def pre(self, streams: Streams) -> BlockInput:
        """Mix in what is pending in streams [B, T, C, D] and begin a sublayer, whose input is [B, T, D]."""
        return self.ops.hc_pre(
            streams, self.fn, self.base, self.norm,
            iterations=self.iterations, hc_eps=self.hc_eps, norm_eps=self.norm_eps, dtype=self.dtype,
        )  # fmt: skip


class Chunk(NamedTuple):
    """Streams of tokens [B, T], as planned."""

    streams: Streams
    tokens: mx.array
    plan: ChunkPlan


class Block(Module):
    """Layer `index` of the trunk, or a block after it."""

    def __init__(
        self, config: ModelConfig, index: int, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.attn_hc = HyperConnection(config, prefix, "hc_attn", "attn_norm", source, ops)
        self.attn = Attention(config, config.kind(index), f"{prefix}.attn", source, ops, numerics)
        self.ffn_hc = HyperConnection(config, prefix, "hc_ffn", "ffn_norm", source, ops)
        self.ffn = MoE(config, config.hashed(index), prefix, source, ops)

    def __call__(self, streams: Streams, tokens: mx.array, state: LayerState, plan: ChunkPlan) -> Streams:
        """tokens [B, T]. The experts' output is left pending: whoever comes next mixes it in."""
        return self.forward_chunks([Chunk(streams, tokens, plan)], state, lambda i, entry: None)[0]

    def added(self, x: mx.array, tokens: mx.array, state: LayerState, plan: ChunkPlan) -> mx.array:
        """What the block adds to streams x [B, T, C, D], of tokens [B, T]; nothing is left pending."""
        return self.ffn_hc.ops.hc_post(self(Streams(x), tokens, state, plan)) - x

    def forward_chunks(
        self, chunks: Sequence[Chunk], state: LayerState, on_attended: Callable[[int, BlockInput], None]
    ) -> list[Streams]:
        """Consecutive chunks, streams [B, T, C, D] each: attention one by one, the experts of all together.

        `on_attended(i, entry)` is called when the state has taken chunk i in and not yet the next; `entry` is
        what its experts start from.
        """
        entries = []
        for i, (streams, _, plan) in enumerate(chunks):
            entry = self.attn_hc.pre(streams)
            out = self.attn(entry, state, plan)
            entries.append(self.ffn_hc.pre(Streams(entry.streams, out, entry.mix)))
            on_attended(i, entries[-1])
        outs = self.ffn.forward_chunks(entries, [chunk.tokens for chunk in chunks])
        return [Streams(entry.streams, out, entry.mix) for entry, out in zip(entries, outs, strict=True)]
