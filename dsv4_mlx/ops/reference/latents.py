"""What one product makes of a sublayer's input: the queries' latent row and the key/value row."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from dsv4_mlx.ops.reference.rotate import rotate
from dsv4_mlx.ops.reference.round_trip import rounded
from dsv4_mlx.ops.types import Rounding


def latents(
    low: mx.array,
    q_norm: mx.array,
    kv_norm: mx.array,
    table: mx.array,
    *,
    eps: float,
    rounding: Rounding,
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate,
    round: Callable[[mx.array, Rounding], mx.array] = rounded,
) -> tuple[mx.array, mx.array]:
    """low [B, T, Q + K] -> (normed latent [B, T, Q], key/value row [B, T, K] normed, rotated and rounded).

    q_norm [Q] in low's dtype, kv_norm [K] float32, table complex64 [T, K / 2]. Results in low's dtype; the
    key/value row is float32 in between (docs/model.md 3.3).
    """
    rank = q_norm.shape[0]
    qr = mx.fast.rms_norm(low[..., :rank], q_norm, eps)
    kv = mx.fast.rms_norm(low[..., rank:].astype(mx.float32), kv_norm, eps)
    return qr, round(rotate(kv, table), rounding).astype(low.dtype)
