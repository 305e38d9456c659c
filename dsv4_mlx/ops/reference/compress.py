"""Compressor: groups of tokens -> one key/value row each, by a gated, channelwise softmax."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.reference.rotate import rotate
from dsv4_mlx.ops.reference.round_trip import rounded
from dsv4_mlx.ops.types import Number, Rounding


def compress(
    source: mx.array,
    offset: Number,
    weight: mx.array,
    table: mx.array,
    *,
    ratio: int,
    at: int,
    overlap: bool,
    first: bool,
    eps: float,
    rounding: Rounding,
    dtype: mx.Dtype,
    pool: Callable[..., mx.array] | None = None,
    round: Callable[[mx.array, Rounding], mx.array] = rounded,
) -> mx.array:
    """Whole groups of projected tokens -> their rows [B, G', K] of `dtype`, normed, rotated and rounded.

    source [B, S, W] float32 is a ring: the groups' tokens begin at row `offset` and go on from the last row
    to the first. From column `at` on a row holds c * K values and as many gates, the position bias added; c
    is 2 with `overlap`. weight [K]; table complex64 [G', >= K / 2]. Groups and `first` as in `pool_groups`.
    """
    groups = table.shape[0] + (overlap and not first)
    rows = _span(source, offset, groups * ratio)
    width = weight.shape[0] * (1 + overlap)
    rows = rows.reshape(rows.shape[0], groups, ratio, rows.shape[2])
    values, gates = rows[..., at : at + width], rows[..., at + width : at + 2 * width]
    pooled = (pool or pool_groups)(values, gates, weight, table, overlap=overlap, first=first, eps=eps)
    return round(pooled, rounding).astype(dtype)


def _span(source: mx.array, offset: Number, count: int) -> mx.array:
    """`count` rows of a ring [B, S, W] from `offset` on, in order."""
    if not isinstance(offset, int):
        return mx.take(
            source, (offset + mx.array(np.arange(count, dtype=np.uint32))) % source.shape[1], axis=1
        )
    whole = min(count, source.shape[1] - offset)
    if whole == count:
        return source[:, offset : offset + count]
    return mx.concatenate([source[:, offset:], source[:, : count - whole]], axis=1)


def pool_groups(
    values: mx.array,
    gates: mx.array,
    weight: mx.array,
    table: mx.array,
    *,
    overlap: bool,
    first: bool,
    eps: float,
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate,
) -> mx.array:
    """Pool, norm and rotate whole groups (docs/model.md 3.4).

    values, gates [B, G, P, c * K] float32, gates with the position bias added; weight [K]
    float32; table complex64 [G', >= K / 2] of the emitted rows. Returns [B, G', K] float32.

    HCA (overlap False, c = 1): every group gives a row; G' = G.
    CSA (overlap True, c = 2): a row pools 2 P tokens, the previous group by its first K channels and this
    one by its last K. With `first`, the groups start at position 0 and the first has no predecessor:
    G' = G. Otherwise the first group is only a predecessor: G' = G - 1.
    """
    if overlap:
        width = values.shape[-1] // 2
        values = _overlapped(values, width, first, 0.0)
        gates = _overlapped(gates, width, first, -mx.inf)
    pooled = mx.sum(values * mx.softmax(gates, axis=2), axis=2)
    rows = mx.fast.rms_norm(pooled, weight, eps)
    return rotate(rows, table)


def _overlapped(x: mx.array, width: int, first: bool, fill: float) -> mx.array:
    """[B, G, P, 2 K] -> [B, G', 2 P, K]: the group before by its first K channels, this one by its last."""
    previous, current = x[..., :width], x[..., width:]
    if first:
        nothing = mx.full((x.shape[0], 1, x.shape[2], width), fill, x.dtype)
        previous = mx.concatenate([nothing, previous[:, :-1]], axis=1)
    else:
        previous, current = previous[:, :-1], current[:, 1:]
    return mx.concatenate([previous, current], axis=2)
