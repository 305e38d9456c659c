"""The arithmetic of conversion: official bytes -> values -> target bytes, for a block of rows at a time.

Only `affine4` computes anything. FP4 and FP8 codes are MLX's codes already; an FP8 scale that covers a
128x128 block is repeated for every row and every 32 columns.

Rows of official matrices: their bytes, their scales, their values. Every byte is checked as it is read.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.check import Bytes, check_bytes, expand_scales, scale_bytes
from dsv4_mlx.checkpoint.inventory import FP8_BLOCK, Weight
from dsv4_mlx.checkpoint.manifest import MX_GROUP
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.convert.recipe import AFFINE_BITS, AFFINE_GROUP

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


def raw_rows(reader: SourceReader, tensor: str, first: int, last: int) -> Bytes:
    """[last - first, bytes of a row] as stored."""
    raw = _read(reader, tensor, first, last)
    check_bytes(reader.source, tensor, raw.data.cast("B"))
    return raw


def scale_rows(reader: SourceReader, weight: Weight, first: int, last: int) -> Bytes:
    """The scales of rows first to last of an FP8 matrix, E8M0: [ceil((last - first) / 128), ceil(in / 128)].

    `first` is a multiple of FP8_BLOCK.
    """
    raw = _read(reader, weight.scale_name, first // FP8_BLOCK, -(-last // FP8_BLOCK))
    return scale_bytes(reader.source, weight.scale_name, raw.data.cast("B")).reshape(raw.shape[0], -1)


def expanded_scales(reader: SourceReader, weight: Weight, first: int, last: int) -> Bytes:
    """As scale_rows, one for each row and 32 columns: [last - first, in / 32]."""
    return expand_scales(scale_rows(reader, weight, first, last), last - first, weight.shape[1])


def values(reader: SourceReader, weight: Weight, first: int, last: int) -> npt.NDArray[np.float32]:
    """float32 [last - first, in] of an FP8 or BF16 matrix; `first` as in scale_rows."""
    raw = raw_rows(reader, weight.name, first, last)
    if weight.form == "fp8":
        return decode_fp8(raw, scale_rows(reader, weight, first, last))
    return decode_bf16(raw.view(np.uint16))


def _read(reader: SourceReader, tensor: str, first: int, last: int) -> Bytes:
    entry = reader.source.entry(tensor)
    width = (entry.end - entry.start) // entry.shape[0]
    raw = np.empty((last - first, width), dtype=np.uint8)
    reader.read(reader.source.where[tensor], entry.start + first * width, raw.data.cast("B"))
    return raw
