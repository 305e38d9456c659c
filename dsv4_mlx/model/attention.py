"""Attention of one layer: a window of raw rows, compressed rows (CSA, HCA), a sink, grouped output."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import LayerKind, ModelConfig
from dsv4_mlx.model.chunk import ChunkPlan
from dsv4_mlx.model.compressor import Compressor, Indexer
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import Linear, TensorSource
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.ops.types import AttendedRows, BlockInput, Rounding


class Attention(Module):
    """docs/model.md 3.3. Low-rank queries, one key/value head of `head_dim` shared by all heads."""

    def __init__(
        self, config: ModelConfig, kind: LayerKind, prefix: str, source: TensorSource, ops: Ops,
        numerics: Numerics,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ops, self.kind = ops, kind
        self.heads = config.heads
        self.rounding = numerics.rows(config.nope_dim, config.kv_block)
        self.eps, self.dtype = config.norm_eps, source.dtype
        hidden, width = config.hidden_size, config.heads * config.head_dim
        down = [
            source.linear(f"{prefix}.wq_a", (config.q_rank, hidden)),
            source.linear(f"{prefix}.wkv", (config.head_dim, hidden)),
        ]
        self.down = Linear.joined(down)  # [q_rank + K, D]: both read the same input
        self.q_norm = source.norm(f"{prefix}.q_norm", config.q_rank)
        self.kv_norm = source.vector(f"{prefix}.kv_norm.weight", (config.head_dim,))
        self.wq_b = source.linear(f"{prefix}.wq_b", (width, config.q_rank))
        rank = config.o_groups * config.o_rank
        self.wo_a = source.linear(f"{prefix}.wo_a", (rank, width // config.o_groups)).grouped(config.o_groups)
        self.wo_b = source.linear(f"{prefix}.wo_b", (hidden, rank))
        self.sinks = source.vector(f"{prefix}.attn_sink", (config.heads,))
        if kind.ratio:
            self.compressor = Compressor(config, kind, f"{prefix}.compressor", source, ops, numerics)
        if kind.indexed:
            self.indexer = Indexer(config, f"{prefix}.indexer", source, ops, numerics)

    def __call__(self, entry: BlockInput, state: LayerState, plan: ChunkPlan) -> mx.array:
        """From the normed input [B, T, D] to [B, T, D]; the state takes in the chunk's rows."""
        rotation = plan.compressed if self.kind.ratio else plan.plain
        qr, kv = self.ops.latents(
            self.down(entry.x), self.q_norm, self.kv_norm, rotation.forward,
            eps=self.eps, rounding=self.rounding,
        )  # fmt: skip
        q = self.ops.query_heads(
            self.wq_b(qr), rotation.forward, heads=self.heads, eps=self.eps, rounding=Rounding()
        )
        window = self._window(kv, state, plan)
        compressed = self._compressed(entry, qr, state, plan)
        out = self.ops.attend(q, window, compressed, self.sinks, rotation.inverse)
        return self.wo_b(self.ops.group_project(out, self.wo_a.bank()))

    @staticmethod
    def _window(kv: mx.array, state: LayerState, plan: ChunkPlan) -> AttendedRows:
        """kv [B, T, K]: store the chunk's rows and return those its queries see, [B, S, K]."""
        if plan.in_ring:
            state.window.write(kv, plan.place)
            return AttendedRows(state.window.filled(plan.filled), plan.window, filled=plan.count)
        rows = kv
        if plan.history < plan.start:
            rows = mx.concatenate([state.window.read(plan.history, plan.start), kv], axis=1)
        state.window.write(kv, plan.start)
        return AttendedRows(rows, plan.window)

    def _compressed(
        self, entry: BlockInput, qr: mx.array, state: LayerState, plan: ChunkPlan
    ) -> AttendedRows | None:
        """x [B, T, D], qr [B, T, Q] -> the compressed rows that the queries see [B, N, K]; None: none are."""
        if not self.kind.ratio:
            return None
        self.compressor(entry.x_f32, state, plan)
        if self.kind.indexed:
            rows: AttendedRows | None = self.indexer(entry.x_f32, qr, state, plan)
            return rows
        emission, (_, stored) = plan.emissions[self.kind], state.compressed
        if not emission.stop:
            return None
        return AttendedRows(stored.read(emission.stop), emission.mask, filled=emission.count)
