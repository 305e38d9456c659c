"""The quantisers the model was trained with, as round trips: values in, values that FP8 or FP4 can hold out.

Scales are powers of two, `2^ceil(log2(largest / top))`, taken from the bits of the float32: adding
(mantissa mask - mantissa of `top`) carries into the exponent exactly where the largest value's mantissa
exceeds that of `top`, so no logarithm or division can round the scale wrongly (docs/model.md 3.0). Dividing
by such a scale is exact, and so is its product with a code: all results are bfloat16 numbers.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.types import Rounding

_TINY_Q8 = 1e-4  # the official lower bounds of a block's largest value
_TINY_Q4 = 6.0 * 2.0**-126
_EXPONENT = 0x7F800000


def rounded(x: mx.array, rounding: Rounding) -> mx.array:
    """x [..., K] -> the round trip that `rounding` names, in x's dtype."""
    if rounding.kind == "q8":
        return q8_rows(x, rounding.channels, rounding.block)
    return q4(hadamard(x), rounding.block) if rounding.kind == "q4" else x


def q8(x: mx.array, block: int) -> mx.array:
    """x [..., n * block] -> E4M3 round trip with one scale per `block` channels, in x's dtype."""
    values, scale = _scaled(x, block, _TINY_Q8, 0x1FFFFF, 8)  # 448 = 1.75 * 2^8
    return (mx.from_fp8(mx.to_fp8(values), dtype=mx.float32) * scale).reshape(x.shape).astype(x.dtype)


def q8_rows(x: mx.array, channels: int, block: int) -> mx.array:
    """x [..., K], K a multiple of `block` -> `q8` of the first `channels` channels, others as is."""
    return mx.where(_first(channels, x.shape[-1]), q8(x, block), x)


def q4(x: mx.array, block: int = 32) -> mx.array:
    """x [..., n * block] -> E2M1 round trip with one scale per `block` channels, in x's dtype.

    Representable: 0, .5, 1, 1.5, 2, 3, 4, 6. Within a binade the step is constant, half the value's power of
    two, and .5 below 2. A tie goes to the even multiple of the step, which is the even code.
    """
    values, scale = _scaled(x, block, _TINY_Q4, 0x3FFFFF, 2)  # 6 = 1.5 * 2^2
    powers = (values.view(mx.uint32) & _EXPONENT).view(mx.float32)
    step = mx.maximum(powers, 1.0) * 0.5
    return (mx.round(values / step) * step * scale).reshape(x.shape).astype(x.dtype)


def hadamard(x: mx.array) -> mx.array:
    """x [..., 2^n] -> Walsh-Hadamard transform, natural order, scaled by 2^(-n/2), in x's dtype."""
    return mx.hadamard_transform(x)


def _scaled(x: mx.array, block: int, tiny: float, carry: int, exponent: int) -> tuple[mx.array, mx.array]:
    """x as blocks [..., n, block], divided by their scales [..., n, 1]: no value exceeds `top`."""
    blocks = x.astype(mx.float32).reshape(*x.shape[:-1], x.shape[-1] // block, block)
    largest = mx.maximum(mx.max(mx.abs(blocks), axis=-1, keepdims=True), tiny)
    scale = ((largest.view(mx.uint32) - ((exponent << 23) - carry)) & _EXPONENT).view(mx.float32)
    return blocks / scale, scale


@cache
def _first(channels: int, width: int) -> mx.array:  # bool [K]
    return mx.array(np.arange(width) < channels)
