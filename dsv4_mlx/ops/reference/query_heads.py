"""Queries of all heads, ready to be multiplied with rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.reference.rotate import rotate
from dsv4_mlx.ops.reference.round_trip import rounded
from dsv4_mlx.ops.types import Rounding


def query_heads(
    q: mx.array,
    table: mx.array,
    *,
    heads: int,
    eps: float | None,
    rounding: Rounding,
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate,
    round: Callable[[mx.array, Rounding], mx.array] = rounded,
) -> mx.array:
    """q [B, T, H * K] -> [B, T, H, K] float32, rotated by table complex64 [T, >= K / 2], then rounded.

    With `eps` each head is normed first, without a weight, and multiplied by the scale of the scores,
    K^-0.5. Without, as the indexer's queries, neither (docs/model.md 3.3, 3.5).
    """
    q = q.astype(mx.float32).reshape(*q.shape[:2], heads, q.shape[2] // heads)
    if eps is not None:
        q = mx.fast.rms_norm(q, _scale(q.shape[-1]), eps)
    return round(rotate(q, table[:, None]), rounding)


@cache
def _scale(width: int) -> mx.array:  # [K]
    return mx.array(np.full(width, width**-0.5, np.float32))
