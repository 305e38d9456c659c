"""Mixture of experts: router, routed experts, the shared expert."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.tensors import ExpertSource, Linear, TensorSource
from dsv4_mlx.operands import Bank
from dsv4_mlx.ops import Ops
from dsv4_mlx.reference.expert_ffn import swiglu


class MoE(Module):
    """docs/model.md 3.6. `hashed`: the experts come from a table by token id, the weights from the router."""

    def __init__(self, config: ModelConfig, hashed: bool, block: str, source: TensorSource, ops: Ops) -> None:
        super().__init__()
        self.ops, self.limit, self.scale = ops, config.swiglu_limit, config.routed_scale
        self.count, self.hashed, self.dtype = config.experts_per_token, hashed, source.dtype
        prefix, hidden, width = f"{block}.ffn", config.hidden_size, config.expert_width
        self.gate = source.float_linear(f"{prefix}.gate", (config.experts, hidden)).weight
        if hashed:
            # Not a parameter: integers have no gradient.
            self._experts_of = source.table(f"{prefix}.gate.tid2eid", (config.vocab_size, self.count))
        else:
            self.bias = source.vector(f"{prefix}.gate.bias", (config.experts,))
        self.shared_gate_up = Linear.joined(
            [source.linear(f"{prefix}.shared_experts.{name}", (width, hidden)) for name in ("w1", "w3")]
        )
        self.shared_down = source.linear(f"{prefix}.shared_experts.w2", (hidden, width))
        self.experts: ExpertSource = source.experts(block)

    def __call__(self, x: mx.array, tokens: mx.array) -> mx.array:
        """x [B, T, D] float32, tokens [B, T] (read by hash layers) -> [B, T, D] float32."""
        if self.hashed:
            ids = self._experts_of[tokens]
            ids, weights = self.ops.route_hashed(x, self.gate, ids, scale=self.scale)
        else:
            ids, weights = self.ops.route(x, self.gate, self.bias, count=self.count, scale=self.scale)
        x = x.astype(self.dtype)
        hidden = swiglu(self.shared_gate_up(x).astype(mx.float32), self.limit).astype(x.dtype)
        shared = self.shared_down(hidden).astype(mx.float32)
        return self.experts.routed(self._product, x, ids, weights, shared) + shared

    def _product(
        self, x: mx.array, slots: mx.array, weights: mx.array, gate_up: Bank, down: Bank
    ) -> mx.array:
        return self.ops.expert_ffn(x, slots, weights, gate_up, down, self.limit)
