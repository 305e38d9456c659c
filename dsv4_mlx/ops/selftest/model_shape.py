"""The sizes and formats of a model, as far as its kernels are compiled for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from dsv4_mlx.config import LayerKind, ModelConfig
from dsv4_mlx.ops.types import Rounding


@dataclass(frozen=True)
class ModelShape:
    """What decides which pipelines a model has. The defaults are V4-Flash's, in recipe `native`.

    `linear` and `expert` are formats of ops.kernels.cases.FORMATS. What is timed: chunks of `chunk` tokens,
    after some times `seen` compressed rows.
    """

    hidden: int = 4096
    heads: int = 64
    head_dim: int = 512
    rope_dim: int = 64
    kv_block: int = 64
    q_rank: int = 1024
    o_groups: int = 8
    o_rank: int = 1024
    window: int = 128
    index_heads: int = 64
    index_dim: int = 128
    index_topk: int = 512
    streams: int = 4
    iterations: int = 20
    experts: int = 256
    chosen: int = 6
    expert_width: int = 2048
    chunk: int = 512
    seen: int = 1024
    linear: str = "mxfp8"
    expert: str = "mxfp4"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @staticmethod
    def of(config: ModelConfig, linear: str, expert: str) -> ModelShape:
        """Of a model whose matrices are stored in these formats."""
        return ModelShape(
            config.hidden_size, config.heads, config.head_dim, config.rope_dim, config.kv_block,
            config.q_rank, config.o_groups, config.o_rank, config.window, config.index_heads,
            config.index_dim, config.index_topk, config.streams, config.sinkhorn_iterations, config.experts,
            config.experts_per_token, config.expert_width, linear=linear, expert=expert,
        )  # fmt: skip

    @property
    def activations(self) -> mx.Dtype:
        return mx.bfloat16 if self.dtype == "bfloat16" else mx.float32

    def row_roundings(self) -> tuple[Rounding, Rounding]:
        """Of key/value rows, for both numerics."""
        return Rounding("q8", self.head_dim - self.rope_dim, self.kv_block), Rounding()

    def index_roundings(self) -> tuple[Rounding, Rounding]:
        """Of index rows and queries, for both numerics."""
        return Rounding("q4", self.index_dim, 32), Rounding()

    def group(self, kind: LayerKind) -> int:
        """Columns of a token's row in the open group of compressors: values and gates of each."""
        return 2 * kind.halves * (self.head_dim + (self.index_dim if kind.indexed else 0))
