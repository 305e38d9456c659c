"""The quantisers the model was trained with, as round trips: values in, values that FP8 or FP4 can hold out.

Scales are powers of two, `2^ceil(log2(largest / top))`, taken from the bits of the float32: adding
(mantissa mask - mantissa of `top`) carries into the exponent exactly where the largest value's mantissa
exceeds that of `top`, so no logarithm or division can round the scale wrongly (MODEL 3.0).
"""

from __future__ import annotations

import mlx.core as mx

_TINY_Q8 = 1e-4  # the official lower bounds of a block's largest value
_TINY_Q4 = 6.0 * 2.0**-126


def q8(x: mx.array, block: int) -> mx.array:
    """x [..., n * block] -> E4M3 round trip with one scale per `block` channels, in x's dtype."""
    scale, inverse, values = _scaled(x, block, _TINY_Q8, 0x1FFFFF, 8)  # 448 = 1.75 * 2^8
    codes = mx.to_fp8(mx.clip(values * inverse, -448.0, 448.0))
    return _back(mx.from_fp8(codes, dtype=mx.float32) * scale, x)


def q4(x: mx.array, block: int = 32) -> mx.array:
    """x [..., n * block] -> E2M1 round trip with one scale per `block` channels, in x's dtype.

    Representable: 0, .5, 1, 1.5, 2, 3, 4, 6. Within a binade the step is constant and a tie goes to the
    even multiple, which is the even code.
    """
    scale, inverse, values = _scaled(x, block, _TINY_Q4, 0x3FFFFF, 2)  # 6 = 1.5 * 2^2
    values = mx.clip(values * inverse, -6.0, 6.0)
    size = mx.abs(values)
    step = mx.where(size < 2.0, 0.5, mx.where(size < 4.0, 1.0, 2.0))
    return _back(mx.round(values / step) * step * scale, x)


def hadamard(x: mx.array) -> mx.array:
    """x [..., 2^n] -> Walsh-Hadamard transform, natural order, scaled by 2^(-n/2), in x's dtype."""
    return mx.hadamard_transform(x)


def _scaled(
    x: mx.array, block: int, tiny: float, carry: int, exponent: int
) -> tuple[mx.array, mx.array, mx.array]:
    values = x.astype(mx.float32).reshape(*x.shape[:-1], -1, block)
    largest = mx.maximum(mx.max(mx.abs(values), axis=-1, keepdims=True), tiny)
    biased = ((largest.view(mx.uint32) + carry) >> 23) - exponent
    # 1 / 2^e is 2^-e: biased exponents of a scale and its inverse add up to 254.
    return (biased << 23).view(mx.float32), ((254 - biased) << 23).view(mx.float32), values


def _back(values: mx.array, x: mx.array) -> mx.array:
    return values.reshape(x.shape).astype(mx.bfloat16).astype(x.dtype)
