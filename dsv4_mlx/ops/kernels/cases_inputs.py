"""Inputs of cases: the same numbers on every machine and at every call."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def normal(shape: tuple[int, ...], seed: int) -> mx.array:
    """Normally distributed float32."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def uniform(shape: tuple[int, ...], seed: int) -> mx.array:
    """float32 in [0, 1)."""
    return mx.array(np.random.default_rng(seed).random(shape, np.float32))


def turns(rows: int, width: int, plain: int) -> mx.array:
    """A rotation table complex64 [rows, width / 2] whose first `plain` factors are 1."""
    angles = np.random.default_rng(rows).uniform(0, 6, (rows, width // 2))
    angles[:, :plain] = 0
    return mx.array(np.exp(1j * angles).astype(np.complex64))
