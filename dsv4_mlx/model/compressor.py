"""Compressors of one layer: tokens of a group -> key/value rows and, on CSA layers, index rows."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.plan import Groups, Plan
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import Linear, TensorSource
from dsv4_mlx.ops import Numerics, Ops


class Compressor(Module):
    """Both compressors of a CSA layer, or the one of an HCA layer.

    Their four (two) projections share the input: they are one product, and one row of the open group
    [values | gates (| index values | index gates)].
    """

    def __init__(
        self, config: ModelConfig, ratio: int, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.ops, self.numerics = ops, numerics
        self.ratio, self.overlap = ratio, ratio == 4
        self.eps, self.nope, self.block = config.norm_eps, config.nope_dim, config.kv_block
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
        self.weight = Linear.joined(parts).weight  # [width of a row, D]
        self.bias = mx.concatenate(bias, axis=-1)  # [P, width of a row]: zero under the values

    def __call__(self, x: mx.array, state: LayerState, plan: Plan) -> None:
        """Take in x [B, T, D] float32: extend the open group and write the rows it completes."""
        groups = plan.groups[self.ratio]
        group, stored = state.compressed
        rows = mx.addmm(self.bias[groups.phases], x, self.weight.T)
        after = groups.needed >= plan.start + plan.rows - group.size
        before = None if after else group.read(groups.needed, plan.start)
        group.write(rows, plan.start)
        if groups.table is None:
            return
        end = groups.end * self.ratio
        if before is None:
            pooled = group.read(groups.needed, end)
        else:
            pooled = mx.concatenate([before, rows[:, : end - plan.start]], axis=1)
        pooled = pooled.reshape(x.shape[0], -1, self.ratio, pooled.shape[-1])
        row = self._pool(pooled, 0, self.width, self.norm, groups)
        row = self.numerics.rows(row, self.nope, self.block)
        stored.write(row.astype(stored.buffer.dtype), groups.first)
        if state.index_rows is not None:
            row = self._pool(pooled, 2 * self.width, self.index_width, self.index_norm, groups)
            state.index_rows.write(
                self.numerics.index(row).astype(state.index_rows.buffer.dtype), groups.first
            )

    def _pool(self, pooled: mx.array, at: int, width: int, norm: mx.array, groups: Groups) -> mx.array:
        values, gates = pooled[..., at : at + width], pooled[..., at + width : at + 2 * width]
        return self.ops.compress(
            values, gates, norm, groups.table, overlap=self.overlap, first=groups.opening, eps=self.eps
        )


def _projections(
    name: str, ratio: int, width: int, hidden: int, source: TensorSource
) -> tuple[list[Linear], list[mx.array]]:
    values = source.float_linear(f"{name}.wkv", (width, hidden))
    gates = source.float_linear(f"{name}.wgate", (width, hidden))
    bias = source.vector(f"{name}.ape", (ratio, width))
    return [values, gates], [mx.zeros((ratio, width)), bias]
