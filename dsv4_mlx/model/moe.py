"""Mixture of experts: router, routed experts, the shared expert."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.tensors import ExpertSource, Linear, Routed, TensorSource
from dsv4_mlx.ops.table import Ops
from dsv4_mlx.ops.types import Bank, BlockInput


class MoE(Module):
    """docs/model.md 3.6. `hashed`: the experts come from a table by token id, the weights from the router."""

    def __init__(self, config: ModelConfig, hashed: bool, block: str, source: TensorSource, ops: Ops) -> None:
        super().__init__()
        self.ops, self.limit, self.scale = ops, config.swiglu_limit, config.routed_scale
        self.count, self.hashed = config.experts_per_token, hashed
        prefix, hidden, width = f"{block}.ffn", config.hidden_size, config.expert_width
        self.gate = ops.as_weight(source.float_linear(f"{prefix}.gate", (config.experts, hidden)).weight)
        if hashed:
            # Not a parameter: integers have no gradient.
            self._experts_of = source.table(f"{prefix}.gate.tid2eid", (config.vocab_size, self.count))
        else:
            self.bias = source.vector(f"{prefix}.gate.bias", (config.experts,))
        self.shared_gate_up = Linear.joined(
            [source.linear(f"{prefix}.shared_experts.{name}", (width, hidden)) for name in ("w1", "w3")]
        )
        self.shared_down = source.linear(f"{prefix}.shared_experts.w2", (hidden, width))
        self._product = _Product(ops, self.limit)
        self.experts: ExpertSource = source.experts(block, self._product)

    def use_ops(self, ops: Ops) -> None:
        """Compute with `ops` from now on."""
        self.ops = self._product.ops = ops

    @property
    def experts_by_token(self) -> mx.array:
        """int32 [V, A]: the experts of each token id, where `hashed`."""
        return self._experts_of

    def __call__(self, entry: BlockInput, tokens: mx.array) -> mx.array:
        """From the normed input [B, T, D] and tokens [B, T] (read by hash layers) to [B, T, D] float32."""
        return self.forward_chunks([entry], [tokens])[0]

    def forward_chunks(self, entries: Sequence[BlockInput], tokens: Sequence[mx.array]) -> list[mx.array]:
        """Chunks [B, T, D], tokens [B, T] that go through the experts together -> float32 [B, T, D] each."""
        chunks = [self._route(entry, ids) for entry, ids in zip(entries, tokens, strict=True)]
        return self.experts.routed(chunks)

    def _route(self, entry: BlockInput, tokens: mx.array) -> Routed:
        """x [B, T, D] of the input, ids and weights [B, T, A], the shared expert's output [B, T, D]."""
        if self.hashed:
            ids = self._experts_of[tokens]
            ids, weights = self.ops.route_hashed(entry.x_f32, self.gate, ids, scale=self.scale)
        else:
            ids, weights = self.ops.route(
                entry.x_f32, self.gate, self.bias, count=self.count, scale=self.scale
            )
        x = entry.x
        shared = self.ops.shared_ffn(x, self.shared_gate_up.bank(), self.shared_down.bank(), self.limit)
        return Routed(x, ids, weights, shared, x.shape[0] * x.shape[1])


class _Product:
    """An ExpertProduct. Not a method of MoE: a block would hold itself through its experts."""

    def __init__(self, ops: Ops, limit: float) -> None:
        self.ops, self._limit = ops, limit

    def __call__(self, chunk: Routed, gate_up: Bank, down: Bank) -> mx.array:
        """x, ids and weights [B, T, A] of a chunk -> float32 [B, T, D]."""
        x, ids, weights, shared, rows = chunk
        return self.ops.expert_ffn(x, ids, weights, gate_up, down, self._limit, shared, chunk=rows)
