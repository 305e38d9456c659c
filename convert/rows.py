"""Rows of official matrices: their bytes, their scales, their values. Every byte is checked as it is read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.check import check_bytes, scale_bytes
from dsv4_mlx.checkpoint.inventory import FP8_BLOCK, Weight
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.record import Bytes, expand_scales
from dsv4_mlx.convert.codec import decode_bf16, decode_fp8


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
