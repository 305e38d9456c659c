"""Attention of one layer: a window of raw rows, compressed rows (CSA, HCA), a sink, grouped output."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.compressor import Compressor
from dsv4_mlx.model.indexer import Indexer
from dsv4_mlx.model.plan import Plan, Rotation
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import Linear, TensorSource
from dsv4_mlx.operands import Rows
from dsv4_mlx.ops import Numerics, Ops


class Attention(Module):
    """docs/model.md 3.3. Low-rank queries, one key/value head of `head_dim` shared by all heads."""

    def __init__(
        self, config: ModelConfig, ratio: int, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.ops, self.numerics, self.ratio = ops, numerics, ratio
        self.heads, self.head_dim, self.nope = config.heads, config.head_dim, config.nope_dim
        self.q_rank, self.groups, self.block = config.q_rank, config.o_groups, config.kv_block
        self.eps, self.dtype = config.norm_eps, source.dtype
        hidden, width = config.hidden_size, config.heads * config.head_dim
        down = [
            source.linear(f"{prefix}.wq_a", (config.q_rank, hidden)),
            source.linear(f"{prefix}.wkv", (config.head_dim, hidden)),
        ]
        self.down = Linear.joined(down)  # [q_rank + K, D]: both read the same input
        self.q_norm = source.norm(f"{prefix}.q_norm", config.q_rank)
        self.kv_norm = source.vector(f"{prefix}.kv_norm.weight", (config.head_dim,))
        # The weightless norm of a query carries the scale of the scores.
        self._scale = mx.array(np.full(config.head_dim, config.head_dim**-0.5, np.float32))
        self.wq_b = source.linear(f"{prefix}.wq_b", (width, config.q_rank))
        rank = config.o_groups * config.o_rank
        self.wo_a = source.linear(f"{prefix}.wo_a", (rank, width // config.o_groups)).grouped(config.o_groups)
        self.wo_b = source.linear(f"{prefix}.wo_b", (hidden, rank))
        self.sinks = source.vector(f"{prefix}.attn_sink", (config.heads,))
        if ratio:
            self.compressor = Compressor(config, ratio, f"{prefix}.compressor", source, ops, numerics)
        if ratio == 4:
            self.indexer = Indexer(config, f"{prefix}.indexer", source, ops, numerics)

    def __call__(self, x: mx.array, state: LayerState, plan: Plan) -> mx.array:
        """x [B, T, D] float32, normed -> [B, T, D]; the state takes in the chunk's rows."""
        batch, count, _ = x.shape
        rotation = plan.compressed if self.ratio else plan.plain
        rounded = x.astype(self.dtype)
        low = self.down(rounded)
        qr = mx.fast.rms_norm(low[..., : self.q_rank], self.q_norm, self.eps)
        q = self.wq_b(qr).astype(mx.float32).reshape(batch, count, self.heads, self.head_dim)
        q = self.ops.rotate(mx.fast.rms_norm(q, self._scale, self.eps), rotation.forward[:, None])
        window = self._window(low[..., self.q_rank :], rotation, state, plan)
        compressed = self._compressed(x, rounded, qr, state, plan)
        out = self.ops.attend(q, window, compressed, self.sinks)
        out = self.ops.rotate(out, rotation.inverse[:, None]).astype(self.dtype)
        grouped = out.reshape(batch, count, self.groups, -1).swapaxes(1, 2)  # [B, G, T, H / G * K]
        low = self.wo_a(grouped).swapaxes(1, 2).reshape(batch, count, -1)
        return self.wo_b(low)

    def _window(self, kv: mx.array, rotation: Rotation, state: LayerState, plan: Plan) -> Rows:
        """Norm, rotate and round the chunk's rows, store them, and return the rows its queries see."""
        kv = mx.fast.rms_norm(kv.astype(mx.float32), self.kv_norm, self.eps)
        kv = self.ops.rotate(kv, rotation.forward)
        kv = self.numerics.rows(kv, self.nope, self.block).astype(self.dtype)
        if plan.in_ring:
            state.window.write(kv, plan.start)
            return Rows(state.window.buffer, plan.window)
        rows = kv
        if plan.history < plan.start:
            rows = mx.concatenate([state.window.read(plan.history, plan.start), kv], axis=1)
        state.window.write(kv, plan.start)
        return Rows(rows, plan.window)

    def _compressed(
        self, x: mx.array, rounded: mx.array, qr: mx.array, state: LayerState, plan: Plan
    ) -> Rows | None:
        if not self.ratio:
            return None
        self.compressor(x, state, plan)
        if self.ratio == 4:
            rows: Rows | None = self.indexer(rounded, qr, state, plan)
            return rows
        groups = plan.groups[self.ratio]
        return Rows(state.compressed[1].read(groups.end), groups.mask) if groups.end else None
