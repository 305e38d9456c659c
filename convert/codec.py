"""The arithmetic of conversion: official bytes -> values -> target bytes, for a block of rows at a time.

Only `affine4` computes anything. FP4 and FP8 codes are MLX's codes already; an FP8 scale that covers a
128x128 block is repeated for every row and every 32 columns.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.record import MX_GROUP, expand_scales
from dsv4_mlx.convert.recipe import AFFINE_BITS, AFFINE_GROUP

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _e4m3_values() -> Floats:
    """[256] the value of every E4M3 code (no infinities; 0x7F and 0xFF are NaN)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    small, normal = mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    values = np.where(exponent == 0, small, normal) * np.where(code & 128, -1.0, 1.0)
    values[[0x7F, 0xFF]] = np.nan
    return values.astype(np.float32)


E4M3_VALUES = _e4m3_values()


def scale_values(codes: Bytes) -> Floats:
    """E8M0 bytes -> 2^(byte-127), exact in float32 for 0..254."""
    return np.ldexp(np.float32(1), codes.astype(np.int32) - 127)


def decode_fp8(codes: Bytes, scales: Bytes) -> Floats:
    """codes [rows, columns] and scales [ceil(rows/128), ceil(columns/128)] -> float32 values."""
    rows, columns = codes.shape
    values = E4M3_VALUES[codes]
    groups = values.reshape(rows, columns // MX_GROUP, MX_GROUP)
    groups *= scale_values(expand_scales(scales, rows, columns))[:, :, None]
    return values


def decode_bf16(bits: npt.NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def affine4(values: Floats) -> tuple[Bytes, Bytes, Bytes]:
    """float32 [rows, columns] -> codes U32 [rows, columns/8], scales and biases BF16 [rows, columns/64].

    All three come back as flat bytes. The codes are chosen in float32; scales and biases are rounded after.
    """
    codes, scales, biases = mx.quantize(mx.array(values), group_size=AFFINE_GROUP, bits=AFFINE_BITS)
    narrow = [part.astype(mx.bfloat16).view(mx.uint16) for part in (scales, biases)]
    mx.eval(codes, *narrow)
    flat = [np.asarray(part).reshape(-1).view(np.uint8) for part in (codes, *narrow)]
    return flat[0], flat[1], flat[2]


def decode_affine4(codes: npt.NDArray[np.uint32], scales: Floats, biases: Floats) -> Floats:
    """The values MLX sees, code * scale + bias in float32: [rows, columns] from codes [rows, columns/8]."""
    rows = codes.shape[0]
    nibbles = (codes[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    groups = nibbles.reshape(rows, -1, AFFINE_GROUP).astype(np.float32)
    return (groups * scales[:, :, None] + biases[:, :, None]).reshape(rows, -1)
