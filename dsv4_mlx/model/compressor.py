"""Compressors of one layer: tokens of a group -> key/value rows and, on CSA layers, index rows."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.chunk import ChunkPlan, Emission
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import Linear, TensorSource
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.ops.types import Rounding


class Compressor(Module):
    """Both compressors of a CSA layer, or the one of an HCA layer.

    Their four (two) projections share the input: they are one product, and one row of the open group
    [values | gates (| index values | index gates)].
    """

    def __init__(
        self, config: ModelConfig, ratio: int, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.ops, self.eps = ops, config.norm_eps
        self.ratio, self.overlap = ratio, ratio == 4
        self.rounding = numerics.rows(config.nope_dim, config.kv_block)
        self.index_rounding = numerics.index(config.index_dim)
        spread = 2 if self.overlap else 1
        self.width, self.index_width = spread * config.head_dim, 0
        parts, bias = _projections(prefix, ratio, self.width, config.hidden_size, source)
        self.norm = source.vector(f"{prefix}.norm.weight", (config.head_dim,))
        if self.overlap:
            self.index_width = spread * config.index_dim
            name = prefix.removesuffix("compressor") + "indexer.compressor"
            index_parts, index_bias = _projections(name, ratio, self.index_width, config.hidden_size, source)
            parts, bias = parts + index_parts, bias + index_bias
            self.index_norm = source.vector(f"{name}.norm.weight", (config.index_dim,))
        self.weight = ops.hold(Linear.joined(parts).weight)  # [width of a row, D]
        self.bias = mx.concatenate(bias, axis=-1)  # [P, width of a row]: zero under the values

    def __call__(self, x: mx.array, state: LayerState, plan: ChunkPlan) -> None:
        """Take in x [B, T, D] float32: extend the open group and write the rows it completes."""
        groups = plan.groups[self.ratio]
        group, stored = state.compressed
        rows = self.ops.project(x, self.weight, self.bias, plan.start % self.ratio)
        after = groups.needed >= plan.start + plan.rows - group.size
        before = None if after else group.read(groups.needed, plan.start)
        group.write(rows, plan.start)
        if groups.table is None:
            return
        if before is None:
            source, offset = group.buffer, groups.needed % group.size
        else:
            source, offset = mx.concatenate([before, rows], axis=1), 0
        row = self._rows(source, offset, 0, self.norm, groups, self.rounding, stored.buffer.dtype)
        stored.write(row, groups.first)
        if state.index_rows is not None:
            dtype, at = state.index_rows.buffer.dtype, 2 * self.width
            row = self._rows(source, offset, at, self.index_norm, groups, self.index_rounding, dtype)
            state.index_rows.write(row, groups.first)

    def _rows(
        self, source: mx.array, offset: int, at: int, norm: mx.array, groups: Emission,
        rounding: Rounding, dtype: mx.Dtype,
    ) -> mx.array:  # fmt: skip
        return self.ops.compress(
            source, offset, norm, groups.table, ratio=self.ratio, at=at, overlap=self.overlap,
            first=groups.opening, eps=self.eps, rounding=rounding, dtype=dtype,
        )  # fmt: skip


def _projections(
    name: str, ratio: int, width: int, hidden: int, source: TensorSource
) -> tuple[list[Linear], list[mx.array]]:
    values = source.float_linear(f"{name}.wkv", (width, hidden))
    gates = source.float_linear(f"{name}.wgate", (width, hidden))
    bias = source.vector(f"{name}.ape", (ratio, width))
    return [values, gates], [mx.zeros((ratio, width)), bias]
