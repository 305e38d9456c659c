"""Hyper-connection at the end of the trunk: C streams -> one, before the final norm."""

from __future__ import annotations

import mlx.core as mx


def hc_head(
    x: mx.array, fn: mx.array, base: mx.array, weight: mx.array, *, hc_eps: float, norm_eps: float
) -> mx.array:
    """x [B, T, C, D], fn [C, C * D] holding the scale, base [C], weight [D] -> [B, T, D], all float32."""
    batch, rows, streams, width = x.shape
    normed = mx.fast.rms_norm(x.reshape(batch, rows, streams * width), None, norm_eps)
    pre = mx.sigmoid(mx.addmm(base, normed, fn.T)) + hc_eps
    u = (pre[..., None, :] @ x).reshape(batch, rows, width)
    return mx.fast.rms_norm(u, weight, norm_eps)
