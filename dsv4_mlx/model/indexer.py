"""Indexer of a CSA layer: which compressed rows a query attends to."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import CSA, ModelConfig
from dsv4_mlx.model.chunk import ChunkPlan
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import TensorSource
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.ops.types import AttendedRows


class Indexer(Module):
    """Scores compressed rows with small heads; keeps the best `index_topk` per query (docs/model.md 3.5)."""

    def __init__(
        self, config: ModelConfig, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.ops, self.rounding = ops, numerics.index(config.index_dim)
        self.heads, self.topk = config.index_heads, config.index_topk
        self.wq_b = source.linear(f"{prefix}.wq_b", (self.heads * config.index_dim, config.q_rank))
        weights = source.float_linear(f"{prefix}.weights_proj", (self.heads, config.hidden_size)).weight
        self.weights_proj = ops.as_weight(weights)

    def __call__(self, x: mx.array, qr: mx.array, state: LayerState, plan: ChunkPlan) -> AttendedRows | None:
        """x [B, T, D] float32, qr [B, T, q_rank] -> the compressed rows of this chunk's queries.

        While no more than index_topk rows exist, all are taken and nothing is scored.
        """
        emission = plan.emissions[CSA]
        _, stored = state.compressed
        if emission.stop == 0:
            return None
        rows = stored.read(emission.stop)
        if emission.stop <= self.topk or state.index_rows is None:
            return AttendedRows(rows, emission.mask)
        q = self.ops.query_heads(
            self.wq_b(qr), plan.compressed.forward, heads=self.heads, eps=None, rounding=self.rounding
        )
        weights = self.ops.project(x, self.weights_proj)
        keys = state.index_rows.read(emission.stop)
        indices = self.ops.index_select(q, weights, keys, emission.mask, self.topk)
        mask = None
        if emission.visible is not None:
            mask = mx.where(indices < emission.visible[:, None], 0.0, -mx.inf)
        return AttendedRows(rows, mask, indices)
