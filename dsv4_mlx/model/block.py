"""One layer: hyper-connection around attention, hyper-connection around the experts."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.attention import Attention
from dsv4_mlx.model.moe import MoE
from dsv4_mlx.model.plan import Plan
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.model.tensors import TensorSource
from dsv4_mlx.operands import Mix
from dsv4_mlx.ops import Numerics, Ops


class HyperConnection(Module):
    """Mixes C streams into a sublayer's input and its output back into the streams (docs/model.md 3.2)."""

    def __init__(
        self, config: ModelConfig, prefix: str, kind: str, norm: str, source: TensorSource, ops: Ops
    ) -> None:
        super().__init__()
        self.ops, self.iterations = ops, config.sinkhorn_iterations
        self.hc_eps, self.norm_eps = config.hc_eps, config.norm_eps
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

    def pre(self, x: mx.array) -> tuple[mx.array, Mix]:
        """Streams [B, T, C, D] -> (normed input [B, T, D], how to mix back), float32."""
        return self.ops.hc_pre(
            x, self.fn, self.base, self.norm,
            iterations=self.iterations, hc_eps=self.hc_eps, norm_eps=self.norm_eps,
        )  # fmt: skip


class Block(Module):
    """Layer `index` of the trunk, or a block after it."""

    def __init__(
        self, config: ModelConfig, index: int, prefix: str, source: TensorSource, ops: Ops, numerics: Numerics
    ) -> None:
        super().__init__()
        self.ops = ops
        self.attn_hc = HyperConnection(config, prefix, "hc_attn", "attn_norm", source, ops)
        self.attn = Attention(config, config.ratio(index), f"{prefix}.attn", source, ops, numerics)
        self.ffn_hc = HyperConnection(config, prefix, "hc_ffn", "ffn_norm", source, ops)
        self.ffn = MoE(config, config.hashed(index), prefix, source, ops)

    def __call__(self, x: mx.array, tokens: mx.array, state: LayerState, plan: Plan) -> mx.array:
        """Streams x [B, T, C, D] -> streams, float32; tokens [B, T]."""
        u, mix = self.attn_hc.pre(x)
        x = self.ops.hc_post(x, self.attn(u, state, plan), mix)
        u, mix = self.ffn_hc.pre(x)
        return self.ops.hc_post(x, self.ffn(u, tokens), mix)
