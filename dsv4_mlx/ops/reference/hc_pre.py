"""Hyper-connection, before a sublayer: C streams -> one normed input, and how to mix its output back."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.reference.hc_post import hc_post
from dsv4_mlx.ops.types import BlockInput, StreamMix, Streams


def hc_pre(
    streams: Streams,
    fn: mx.array,
    base: mx.array,
    weight: mx.array,
    *,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
    dtype: mx.Dtype,
) -> BlockInput:
    """Streams [B, T, C, D], what is pending mixed in -> where the next sublayer starts.

    fn [(2 + C) * C, C * D] float32 already holds the three scales; base [(2 + C) * C] float32;
    weight [D] of the RMSNorm that follows. docs/model.md 3.2: `pre = sigmoid + eps`, `post = 2 sigmoid`,
    comb = Sinkhorn of C x C scores. Float32 inside; `dtype` is that of activations.
    """
    x = hc_post(streams)
    batch, rows, count, width = x.shape
    v = x.astype(mx.float32)
    normed = mx.fast.rms_norm(v.reshape(batch, rows, count * width), None, norm_eps)
    mixes = mx.addmm(base, normed, fn.T)  # [B, T, (2 + C) * C]
    gates = mx.sigmoid(mixes[..., : 2 * count])
    comb = sinkhorn(mixes[..., 2 * count :], count, iterations, hc_eps)
    u = (gates[..., None, :count] + hc_eps) @ v  # [B, T, 1, C] @ [B, T, C, D]
    u = mx.fast.rms_norm(u.reshape(batch, rows, width).astype(x.dtype), weight, norm_eps)
    return BlockInput(x, u, u.astype(dtype), StreamMix(gates[..., count:], comb))


def sinkhorn(scores: mx.array, streams: int, iterations: int, eps: float) -> mx.array:
    """scores [..., C * C] -> doubly normalised [..., C, C]: softmax of rows + eps, then columns and rows in
    turn, `iterations` column passes in all, ending on columns.

    The C x C matrix of a token is kept as a row of C*C numbers and a one behind them. A sum over its rows or
    columns, eps added, is then a product with a constant matrix, whose last column keeps the one: a product
    and a division a pass at any number of tokens, and no shape in between for MLX to turn.
    """
    lead, squared = scores.shape[:-1], streams * streams
    first, offset, row_sums, column_sums, last = _sums(streams, eps)
    comb = mx.softmax(scores.reshape(-1, streams, streams), axis=-1, precise=True).reshape(-1, squared)
    comb = mx.addmm(offset, comb, first)  # + eps, and the one
    for _ in range(iterations - 1):
        comb = comb / (comb @ column_sums)
        comb = comb / (comb @ row_sums)
    comb = comb[:, :squared] / (comb @ last)  # without the one: rows with a gap would be copied
    return comb.reshape(*lead, streams, streams)


@cache
def _sums(streams: int, eps: float) -> tuple[mx.array, ...]:
    """How the one is put behind (factor [C C, C C + 1], summand); sums of rows, of columns, the last."""
    squared = streams * streams
    ones, eye = np.ones((streams, streams), np.float32), np.eye(streams, dtype=np.float32)
    offset = np.full((1, squared + 1), eps, np.float32)
    offset[0, -1] = 1
    matrices = []
    for sums in (np.kron(eye, ones), np.kron(ones, eye)):
        matrix = np.zeros((squared + 1, squared + 1), np.float32)
        matrix[:-1, :-1], matrix[-1] = sums, offset
        matrices.append(matrix)
    first = np.eye(squared, squared + 1, dtype=np.float32)
    return tuple(mx.array(a) for a in (first, offset, *matrices, matrices[1][:, :-1]))
