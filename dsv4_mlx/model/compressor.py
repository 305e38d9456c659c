"""What gives a layer its compressed rows: compressors, and on CSA layers the indexer that picks of them."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import CSA, LayerKind, ModelConfig
from dsv4_mlx.model.chunk import ChunkPlan, Emission
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import Linear, TensorSource
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.ops.types import AttendedRows, Number, Rounding


class Compressor(Module):
    """Both compressors of a CSA layer, or the one of an HCA layer.

    Their four (two) projections share the input: they are one product, and one row of the open group
    [values | gates (| index values | index gates)].
    """

    def __init__(
        self, config: ModelConfig, kind: LayerKind, prefix: str, source: TensorSource, ops: Ops,
        numerics: Numerics,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ops, self.eps = ops, config.norm_eps
        self.kind, ratio = kind, kind.ratio
        self.rounding = numerics.rows(config.nope_dim, config.kv_block)
        self.index_rounding = numerics.index(config.index_dim)
        self.width, self.index_width = kind.halves * config.head_dim, 0
        parts, bias = _projections(prefix, ratio, self.width, config.hidden_size, source)
        self.norm = source.vector(f"{prefix}.norm.weight", (config.head_dim,))
        if kind.indexed:
            self.index_width = kind.halves * config.index_dim
            name = prefix.removesuffix("compressor") + "indexer.compressor"
            index_parts, index_bias = _projections(name, ratio, self.index_width, config.hidden_size, source)
            parts, bias = parts + index_parts, bias + index_bias
            self.index_norm = source.vector(f"{name}.norm.weight", (config.index_dim,))
        self.weight = ops.as_weight(Linear.joined(parts).weight)  # [width of a row, D]
        self.bias = mx.concatenate(bias, axis=-1)  # [P, width of a row]: zero under the values

    def __call__(self, x: mx.array, state: LayerState, plan: ChunkPlan) -> None:
        """Take in x [B, T, D] float32: extend the open group and write the rows it completes."""
        emission = plan.emissions[self.kind]
        group, stored = state.compressed
        rows = self.ops.project(x, self.weight, self.bias, emission.phase)
        before = None if emission.in_ring else group.read(emission.pool_from, plan.start)
        group.write(rows, emission.place)
        if emission.table is None:
            return
        if before is None:
            source, offset = group.buffer, emission.offset
        else:
            source, offset = mx.concatenate([before, rows], axis=1), 0
        row = self._rows(source, offset, 0, self.norm, emission, self.rounding, stored.buffer.dtype)
        stored.write(row, emission.start)
        if state.index_rows is not None:
            dtype, at = state.index_rows.buffer.dtype, 2 * self.width
            row = self._rows(source, offset, at, self.index_norm, emission, self.index_rounding, dtype)
            state.index_rows.write(row, emission.start)

    def _rows(
        self, source: mx.array, offset: Number, at: int, norm: mx.array, emission: Emission,
        rounding: Rounding, dtype: mx.Dtype,
    ) -> mx.array:  # fmt: skip
        """From a ring [B, S, W] the rows that this chunk completes, [B, G, K]."""
        return self.ops.compress(
            source, offset, norm, emission.table, ratio=self.kind.ratio, at=at, overlap=self.kind.indexed,
            first=emission.is_first, eps=self.eps, rounding=rounding, dtype=dtype,
        )  # fmt: skip


def _projections(
    name: str, ratio: int, width: int, hidden: int, source: TensorSource
) -> tuple[list[Linear], list[mx.array]]:
    """Values and gates [W, D] each; what is added to them [P, W]: zero, and the position bias."""
    values = source.float_linear(f"{name}.wkv", (width, hidden))
    gates = source.float_linear(f"{name}.wgate", (width, hidden))
    bias = source.vector(f"{name}.ape", (ratio, width))
    return [values, gates], [mx.zeros((ratio, width)), bias]


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
            return AttendedRows(rows, emission.mask, filled=emission.count)
        q = self.ops.query_heads(
            self.wq_b(qr), plan.compressed.forward, heads=self.heads, eps=None, rounding=self.rounding
        )
        weights = self.ops.project(x, self.weights_proj)
        keys = state.index_rows.read(emission.stop)
        indices = self.ops.index_select(q, weights, keys, emission.mask, self.topk, emission.count)
        mask = None
        if emission.visible is not None:
            mask = mx.where(indices < emission.visible[:, None], 0.0, -mx.inf)
        return AttendedRows(rows, mask, indices)
