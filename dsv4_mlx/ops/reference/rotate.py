"""Rotary embedding of the last channels of a row, forward and inverse."""

from __future__ import annotations

import mlx.core as mx


def rotate(x: mx.array, table: mx.array) -> mx.array:
    """x [..., K], table complex64 broadcastable to [..., >= K / 2] -> x with its last channels rotated.

    Neighbouring channels (2i, 2i + 1) are one complex number, and the last K / 2 columns of the table its
    factors: 1 for channels that are not rotated, so that one product does a whole row and nothing is cut or
    joined. The inverse is a product with the conjugate table (docs/model.md 3.3).
    Float32 inside, the result in x's dtype.
    """
    factors = table[..., table.shape[-1] - x.shape[-1] // 2 :]
    return (x.astype(mx.float32).view(mx.complex64) * factors).view(mx.float32).astype(x.dtype)
