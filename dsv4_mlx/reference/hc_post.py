"""Hyper-connection, after a sublayer: its output back into the C streams."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.reference.hc_pre import Mix


def hc_post(x: mx.array, out: mx.array, mix: Mix) -> mx.array:
    """x [B, T, C, D] float32, out [B, T, D] -> `x'[k] = post[k] * out + sum_j comb[j, k] * x[j]`, float32.

    The sum runs over comb's first index (MODEL 3.2, trap 11).
    """
    added = mix.half_post[..., None] * out[..., None, :].astype(mx.float32)
    return mx.addmm(added, mix.comb.swapaxes(-1, -2), x, beta=2.0)
