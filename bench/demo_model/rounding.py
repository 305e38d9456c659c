"""Weights -> the official formats and back, in numpy: what the export writes and what training rounds to."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.inventory import FP4_GROUP, FP8_BLOCK, Weight

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@cache
def e4m3_table() -> Floats:
    """[127] non-negative values of codes 0 .. 126."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    table = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return table.astype(np.float32)


E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)


def _nearest(values: Floats, table: Floats) -> Bytes:
    """Codes of the nearest entries of a table of sizes, ties to the even code; the sign is not encoded."""
    size = np.abs(values)
    high = np.clip(np.searchsorted(table, size), 1, table.size - 1)
    below, above = size - table[high - 1], table[high] - size
    down = (below < above) | ((below == above) & (high % 2 == 1))
    return np.where(down, high - 1, high).astype(np.uint8)


def _exponents(largest: Floats, top: float) -> npt.NDArray[np.int32]:
    """The smallest power of two that keeps `largest` within `top`."""
    return np.ceil(np.log2(np.maximum(largest, 1e-20) / top)).astype(np.int32).clip(-100, 100)


def to_fp8(weight: Floats) -> tuple[Bytes, Bytes]:
    """[out, in] -> E4M3 codes [out, in], E8M0 scales [ceil(out / 128), ceil(in / 128)]."""
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)), np.uint8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = np.s_[i * FP8_BLOCK : (i + 1) * FP8_BLOCK, j * FP8_BLOCK : (j + 1) * FP8_BLOCK]
            exponent = int(_exponents(np.abs(weight[at]).max(keepdims=True), 448.0)[0, 0])
            scaled = weight[at] * np.float32(2.0**-exponent)
            codes[at] = _nearest(scaled, e4m3_table()) | np.where(scaled < 0, 128, 0).astype(np.uint8)
            scales[i, j] = exponent + 127
    return codes, scales


def from_fp8(codes: Bytes, scales: Bytes) -> Floats:
    sizes = np.append(e4m3_table(), np.float32(np.nan))[codes & 127]
    values = np.where(codes & 128, -sizes, sizes)
    spread = np.repeat(np.repeat(scales, FP8_BLOCK, axis=0), FP8_BLOCK, axis=1)
    powers = np.exp2(spread[: codes.shape[0], : codes.shape[1]].astype(np.float32) - 127)
    return np.asarray(values * powers, dtype=np.float32)


def to_fp4(weight: Floats) -> tuple[Bytes, Bytes]:
    """[out, in] -> two E2M1 codes a byte [out, in / 2] (low nibble first), E8M0 scales [out, in / 32]."""
    groups = weight.reshape(weight.shape[0], -1, FP4_GROUP)
    exponents = _exponents(np.abs(groups).max(axis=-1), 6.0)
    scaled = groups * np.exp2(-exponents[..., None].astype(np.float32))
    codes = _nearest(scaled, E2M1) | np.where(scaled < 0, 8, 0).astype(np.uint8)
    flat = codes.reshape(weight.shape)
    packed = (flat[:, 0::2] | (flat[:, 1::2] << 4)).astype(np.uint8)
    return packed, (exponents + 127).astype(np.uint8)


def from_fp4(packed: Bytes, scales: Bytes) -> Floats:
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
    values = np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7])
    powers = np.exp2(scales.astype(np.float32) - 127)
    return np.asarray(values * np.repeat(powers, FP4_GROUP, axis=1), dtype=np.float32)


def to_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to nearest even (finite input)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, dtype=np.uint16)


def rounded(weight: Weight, values: Floats) -> Floats:
    """What is left of the values of an official tensor once it is written and read."""
    if weight.form == "fp8":
        return from_fp8(*to_fp8(values))
    if weight.form == "fp4":
        return from_fp4(*to_fp4(values))
    if weight.dtypes[0] == "BF16":
        return (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    return values
