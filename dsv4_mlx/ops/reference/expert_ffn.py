"""The clamped SwiGLU of the experts: routed (a bank of experts) and shared (one)."""

from __future__ import annotations

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.types import Bank


def swiglu(gate_up: mx.array, limit: float) -> mx.array:
    """[..., 2 I], gate first -> silu(min(gate, limit)) * clamp(up, +-limit), [..., I] (docs/model.md 3.6)."""
    gate, up = mx.split(mx.minimum(gate_up, limit), 2, axis=-1)
    return gate * mx.sigmoid(gate) * mx.maximum(up, -limit)


def expert_ffn(
    x: mx.array,
    ids: mx.array,
    weights: mx.array,
    gate_up: Bank,
    down: Bank,
    limit: float,
    start: mx.array | None = None,
    *,
    chunk: int | None = None,
) -> mx.array:
    """x [B, T, D] through its experts ids [B, T, A] with weights float32 [B, T, A] -> [B, T, D] float32.

    The weight multiplies the hidden values, before the down projection; the A results are added in the
    order of the list, and then to `start` [B, T, D] float32 where there is one.

    `chunk`: how many tokens the chunk has, if the rows here are a part of its (token, expert) pairs. Kernels
    choose their order of summation by it; here it makes no difference.
    """
    hidden = swiglu(_bank_product(x[..., None, None, :], gate_up, ids).astype(mx.float32), limit)
    hidden = (hidden * weights[..., None, None]).astype(x.dtype)
    routed = add_in_order(_bank_product(hidden, down, ids).squeeze(-2))
    return routed if start is None else routed + start


def shared_ffn(x: mx.array, gate_up: Bank, down: Bank, limit: float) -> mx.array:
    """x [B, T, D] through one expert that all tokens share, with weight 1 -> [B, T, D] float32.

    The banks are single matrices: codes [2 I, D] and [D, I], or packed.
    """
    hidden = swiglu(matrix_product(x, gate_up).astype(mx.float32), limit).astype(x.dtype)
    return matrix_product(hidden, down).astype(mx.float32)


def matrix_product(x: mx.array, bank: Bank) -> mx.array:
    """x [..., T, in] times one matrix [out, in], or [G, T, in] times a matrix for each of G."""
    if bank.scales is None:
        return x @ bank.codes.swapaxes(-1, -2)
    return mx.quantized_matmul(
        x, bank.codes, bank.scales, bank.biases, transpose=True,
        group_size=bank.group, bits=bank.bits, mode=bank.mode,
    )  # fmt: skip


def add_in_order(products: mx.array) -> mx.array:
    """[B, T, A, D] -> float32 [B, T, D]: what a token's experts give, added in the order of its list."""
    return mx.sum(products.astype(mx.float32), axis=-2)


def _bank_product(x: mx.array, bank: Bank, ids: mx.array) -> mx.array:
    """x [B, T, 1 or A, 1, K] times the matrices ids [B, T, A] -> [B, T, A, 1, out]."""
    rows = _numbered(x.shape[:3])  # else MLX makes them anew in every product
    if bank.scales is None:
        return mx.gather_mm(x, bank.codes.swapaxes(-1, -2), rows, ids)
    return mx.gather_qmm(
        x, bank.codes, bank.scales, bank.biases, rows, ids, transpose=True,
        group_size=bank.group, bits=bank.bits, mode=bank.mode,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _numbered(shape: tuple[int, ...]) -> mx.array:  # 0, 1, ... [shape]
    return mx.array(np.arange(math.prod(shape), dtype=np.uint32).reshape(shape))
