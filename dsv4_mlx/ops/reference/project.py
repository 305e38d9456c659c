"""Products that must be float32: compressors and router."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.types import Number


def project(x: mx.array, weight: mx.array, bias: mx.array | None = None, phase: Number = 0) -> mx.array:
    """x [B, T, D] float32, weight [W, D] of any float dtype -> `x @ weight^T` [B, T, W], float32.

    bias float32 [P, W], 0 <= phase < P: row (phase + t) mod P is added to token t.
    """
    weight = weight.astype(mx.float32)
    if bias is None:
        return x @ weight.T
    if not isinstance(phase, int):  # of a single token
        return mx.addmm(bias[phase], x, weight.T)
    period, rows = bias.shape[0], x.shape[1]
    if phase + rows <= period:
        return mx.addmm(bias[phase : phase + rows], x, weight.T)
    return mx.addmm(bias[_phases(phase, rows, period)], x, weight.T)


@lru_cache(maxsize=16)
def _phases(phase: int, rows: int, period: int) -> mx.array:  # [T]
    return mx.array((phase + np.arange(rows)) % period)
