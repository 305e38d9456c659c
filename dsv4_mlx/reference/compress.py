"""Compressor: a group of tokens -> one key/value row, by a gated, channelwise softmax."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from dsv4_mlx.reference.rotate import rotate


def compress(
    values: mx.array,
    gates: mx.array,
    weight: mx.array,
    table: mx.array,
    *,
    overlap: bool,
    first: bool,
    eps: float,
    turn: Callable[[mx.array, mx.array], mx.array] = rotate,
) -> mx.array:
    """Pool, norm and rotate whole groups (docs/model.md 3.4); rounding is the caller's.

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
    return turn(rows, table)


def _overlapped(x: mx.array, width: int, first: bool, fill: float) -> mx.array:
    previous, current = x[..., :width], x[..., width:]
    if first:
        nothing = mx.full((x.shape[0], 1, x.shape[2], width), fill, x.dtype)
        previous = mx.concatenate([nothing, previous[:, :-1]], axis=1)
    else:
        previous, current = previous[:, :-1], current[:, 1:]
    return mx.concatenate([previous, current], axis=2)
