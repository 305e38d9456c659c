"""The simulated quantisers and the Hadamard transform, from their definitions, bit-exact.

Every step is either exact in float32 (scaling by a power of two, a table of codes) or rounded once in a
stated way, so another implementation can be asked for equal bits and not for closeness.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle.official import E2M1, E4M3

Array = NDArray[Any]

E4M3_CODES = np.asarray(E4M3[:127], dtype=np.float64)  # 0 .. 448 ascending; 127 is NaN
E2M1_CODES = np.asarray(E2M1[:8], dtype=np.float64)  # 0 .. 6 ascending
Q8_FLOOR = np.float32(1e-4)
Q4_FLOOR = np.float32(6 * 2.0**-126)


def bf16(x: Array) -> Array:
    """Round finite float32 to the nearest BF16, ties to even, returned as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return np.asarray(rounded.view(np.float32))


def nearest_code(magnitude: Array, codes: Array) -> Array:
    """Index of the nearest entry of `codes`; halfway goes to the even index.

    The index is the bit pattern of the code, so an even index is an even mantissa. float64 holds the
    midpoints and the magnitudes exactly, so the comparison has no rounding of its own.
    """
    midpoints = (codes[:-1] + codes[1:]) / 2
    value = np.asarray(magnitude, dtype=np.float64)
    below = np.searchsorted(midpoints, value, side="left")  # midpoints strictly under the value
    on_tie = (below < len(midpoints)) & (midpoints[np.minimum(below, len(midpoints) - 1)] == value)
    return np.asarray(below + (on_tie & (below % 2 == 1)), dtype=np.int64)


def power_of_two_scale(largest: Array, code_max: float) -> Array:
    """The smallest power of two s with largest <= code_max * s, exactly."""
    mantissa, exponent = np.frexp(largest)
    max_mantissa, max_exponent = np.frexp(code_max)
    power = exponent - max_exponent + (mantissa > max_mantissa)
    return np.asarray(np.ldexp(np.float32(1), power), dtype=np.float32)


def _round_trip(x: Array, block: int, codes: Array, floor: np.float32) -> Array:
    value = np.ascontiguousarray(x, dtype=np.float32)
    if value.shape[-1] % block:
        raise ValueError(f"last axis {value.shape[-1]} is not a multiple of the block {block}")
    rows = value.reshape(*value.shape[:-1], -1, block)
    largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), floor)
    scale = power_of_two_scale(largest, float(codes[-1]))
    magnitude = np.minimum(np.abs(rows) / scale, np.float32(codes[-1]))
    quantised = codes[nearest_code(magnitude, codes)].astype(np.float32)
    # copysign keeps the sign of a value that rounds to zero, as a hardware cast does
    result = bf16(np.copysign(quantised, rows) * scale)
    return np.asarray(result.reshape(value.shape))


def q8(x: Array, block: int) -> Array:
    """Round trip through E4M3 with one power-of-two scale per `block` of the last axis."""
    return _round_trip(x, block, E4M3_CODES, Q8_FLOOR)


def q4(x: Array, block: int = 32) -> Array:
    """Round trip through E2M1 with one power-of-two scale per `block` of the last axis."""
    return _round_trip(x, block, E2M1_CODES, Q4_FLOOR)


def hadamard(x: Array) -> Array:
    """Walsh-Hadamard transform of the last axis, natural order, times 1/sqrt(n), in float32.

    The order of additions is part of the definition (it decides the last bit): stages of distance 1, 2, 4,
    and so on, each (a, b) -> (a + b, a - b), and one multiplication at the end.
    """
    value = np.ascontiguousarray(x, dtype=np.float32)
    n = value.shape[-1]
    if n & (n - 1):
        raise ValueError(f"the last axis must be a power of two, got {n}")
    distance = 1
    while distance < n:
        pairs = value.reshape(*x.shape[:-1], n // (2 * distance), 2, distance)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        value = np.stack([first + second, first - second], axis=-2).reshape(x.shape)
        distance *= 2
    return np.asarray(value * np.float32(1 / np.sqrt(n)), dtype=np.float32)


def _ties(rng: np.random.Generator, rows: int, width: int, codes: Array) -> Array:
    """Rows whose scale is known, filled with midpoints between codes, some nudged by one float32 step."""
    midpoints = (codes[:-1] + codes[1:]) / 2
    scale = np.ldexp(1.0, rng.integers(-12, 13, (rows, 1)))
    value = (rng.choice(midpoints, (rows, width)) * scale).astype(np.float32)
    nudge = rng.integers(-1, 2, value.shape)
    value = np.where(nudge < 0, np.nextafter(value, np.float32(0)), value)
    value = np.where(nudge > 0, np.nextafter(value, np.float32(np.inf)), value)
    value[:, rng.integers(width)] = (codes[-1] * scale[:, 0]).astype(np.float32)
    return np.asarray(value)


def _edges_of_scale(rng: np.random.Generator, rows: int, width: int, codes: Array) -> Array:
    """Rows whose largest value is exactly where the scale doubles, or one float32 step to either side."""
    top = np.ldexp(codes[-1], rng.integers(-20, 20, rows)).astype(np.float32)
    nudge = rng.integers(-1, 2, rows)
    top = np.where(nudge < 0, np.nextafter(top, np.float32(0)), top)
    top = np.where(nudge > 0, np.nextafter(top, np.float32(np.inf)), top)
    value = (rng.random((rows, width)) * top[:, None]).astype(np.float32)
    value[:, rng.integers(width)] = top
    return np.asarray(value)


def make_hard_values(n: int, seed: int = 0) -> Array:
    """`n` float32 values (a multiple of 1024) in runs of 64 that are each hard in one way.

    Ties of both code tables, edges of the scale, powers of two, zeros of both signs, float32 subnormals,
    a spread over 240 binary orders inside one block, and plain normals. Magnitudes stay under 2^120:
    beyond that the largest code times its scale may overflow, which no activation reaches.
    """
    if n % 1024 or n <= 0:
        raise ValueError(f"n must be a positive multiple of 1024, got {n}")
    rng = np.random.default_rng(seed)
    rows = n // 1024
    shape = (rows, 64)
    tiny = (rng.integers(0, 2**23, shape).astype(np.uint32)).view(np.float32)
    spread = np.ldexp(rng.random(shape) + 1, rng.integers(-120, 119, shape)).astype(np.float32)
    powers = np.ldexp(1.0, rng.integers(-30, 30, shape)).astype(np.float32)
    normal = rng.standard_normal((rows, 64 * 4)).astype(np.float32)
    small = np.ldexp(rng.random(shape) + 1, rng.integers(-130, -10, shape)).astype(np.float32)
    parts = [
        _ties(rng, rows, 64, E4M3_CODES),
        _ties(rng, rows * 2, 32, E2M1_CODES).reshape(shape),
        _ties(rng, rows * 2, 32, E4M3_CODES).reshape(shape),
        _edges_of_scale(rng, rows, 64, E4M3_CODES),
        _edges_of_scale(rng, rows * 2, 32, E2M1_CODES).reshape(shape),
        powers,
        np.zeros(shape, dtype=np.float32),
        np.where(rng.random(shape) < 0.5, np.float32(0), powers),
        tiny,
        np.where(rng.random(shape) < 0.5, tiny, small),
        spread,
        np.where(rng.random(shape) < 0.9, normal[:, :64], spread),
        normal,
    ]
    value = np.concatenate(parts, axis=1).astype(np.float32)
    signed = np.where(rng.random(value.shape) < 0.5, -value, value)
    return np.asarray(signed, dtype=np.float32).reshape(-1)
