"""Rotary embedding of the last channels of a row, forward and inverse."""

from __future__ import annotations

import mlx.core as mx


def rotate(x: mx.array, table: mx.array) -> mx.array:
    """x [..., K], table complex64 broadcastable to [..., R / 2] -> x with its last R channels rotated.

    Neighbouring channels (2i, 2i + 1) are one complex number; a rotation is one complex product in float32,
    and the inverse is a product with the conjugate table (MODEL 3.3). The result has x's dtype.
    """
    rotated = 2 * table.shape[-1]
    kept = x.shape[-1] - rotated
    pairs = x[..., kept:].astype(mx.float32).view(mx.complex64)
    turned = (pairs * table).view(mx.float32).astype(x.dtype)
    return mx.concatenate([x[..., :kept], turned], axis=-1) if kept else turned
