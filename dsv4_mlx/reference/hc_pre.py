"""Hyper-connection, before a sublayer: C streams -> one normed input, and how to mix its output back."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from dsv4_mlx.operands import Mix


def hc_pre(
    x: mx.array,
    fn: mx.array,
    base: mx.array,
    weight: mx.array,
    *,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
) -> tuple[mx.array, Mix]:
    """Streams x [B, T, C, D] -> (input of the sublayer [B, T, D] in x's dtype, Mix).

    fn [(2 + C) * C, C * D] float32 already holds the three scales; base [(2 + C) * C] float32;
    weight [D] of the RMSNorm that follows. docs/model.md 3.2: `pre = sigmoid + eps`, `post = 2 sigmoid`,
    comb = Sinkhorn of C x C scores. Float32 inside.
    """
    batch, rows, streams, width = x.shape
    v = x.astype(mx.float32)
    normed = mx.fast.rms_norm(v.reshape(batch, rows, streams * width), None, norm_eps)
    mixes = mx.addmm(base, normed, fn.T)  # [B, T, (2 + C) * C]
    gates = mx.sigmoid(mixes[..., : 2 * streams])
    comb = sinkhorn(mixes[..., 2 * streams :], streams, iterations, hc_eps)
    u = (gates[..., None, :streams] + hc_eps) @ v  # [B, T, 1, C] @ [B, T, C, D]
    u = mx.fast.rms_norm(u.reshape(batch, rows, width).astype(x.dtype), weight, norm_eps)
    return u, Mix(gates[..., streams:], comb)


def sinkhorn(scores: mx.array, streams: int, iterations: int, eps: float) -> mx.array:
    """scores [..., C * C] -> doubly normalised [..., C, C]: softmax of rows + eps, then columns and rows in
    turn, `iterations` column passes in all, ending on columns.

    A sum over rows or columns of the C x C matrix, kept flat, is a product with a constant C*C x C*C matrix
    of zeros and ones: one `addmm` (which adds eps) and one division a pass, at any number of tokens.
    """
    shape = (*scores.shape[:-1], streams, streams)
    comb = mx.softmax(scores.reshape(shape), axis=-1, precise=True).reshape(scores.shape) + eps
    row_sums, column_sums, offset = _sums(streams, eps)
    comb = comb / mx.addmm(offset, comb, column_sums)
    for _ in range(iterations - 1):
        comb = comb / mx.addmm(offset, comb, row_sums)
        comb = comb / mx.addmm(offset, comb, column_sums)
    return comb.reshape(shape)


@cache
def _sums(streams: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    ones, eye = np.ones((streams, streams), np.float32), np.eye(streams, dtype=np.float32)
    return mx.array(np.kron(eye, ones)), mx.array(np.kron(ones, eye)), mx.array(eps, mx.float32)
