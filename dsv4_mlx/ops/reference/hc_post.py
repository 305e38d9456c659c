"""Hyper-connection, after a sublayer: its output back into the C streams."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.types import Streams


def hc_post(streams: Streams) -> mx.array:
    """x [B, T, C, D], out [B, T, D] -> `x'[k] = post[k] * out + sum_j comb[j, k] * x[j]`, in x's dtype.

    The sum runs over comb's first index (docs/model.md 3.2). Float32 inside. Nothing pending: x.
    """
    x, out, mix = streams
    if out is None or mix is None:
        return x
    added = mix.half_post[..., None] * out[..., None, :].astype(mx.float32)
    return mx.addmm(added, mix.comb.swapaxes(-1, -2), x.astype(mx.float32), beta=2.0).astype(x.dtype)
