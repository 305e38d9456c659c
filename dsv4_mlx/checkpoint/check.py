"""Bytes of official tensors: those that no valid checkpoint holds are refused, scales are spread for MLX.

Each search is one fast pass over what was just read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.inventory import FP8_BLOCK
from dsv4_mlx.checkpoint.manifest import MX_GROUP
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.errors import InputError

AT_ONCE = 2**20  # codes looked at together

Bytes = npt.NDArray[np.uint8]


def check_bytes(source: Source, tensor: str, data: memoryview) -> None:
    """Raises InputError if `data`, part of `tensor`, holds a value that can't be computed with.

    E4M3 codes 0x7F and 0xFF are NaN; an id in a hash table that names no expert would read another tensor's
    memory; E8M0 scales are those of `scale_bytes`.
    """
    dtype = source.entry(tensor).dtype
    values = np.frombuffer(data, dtype=np.uint8)
    if dtype == "F8_E8M0":
        scale_bytes(source, tensor, data)
    if dtype == "F8_E4M3":
        try:
            check_codes(values)
        except ValueError as error:
            raise _bad(source, tensor, f"holds {error}") from None
    if dtype == "I64" and values.size:
        ids = values.view(np.int64)
        if int(ids.min()) < 0 or int(ids.max()) >= source.config.experts:
            raise _bad(source, tensor, f"names an expert outside 0 to {source.config.experts - 1}")


def scale_bytes(source: Source, tensor: str, data: memoryview) -> Bytes:
    """`data`, part of a tensor of scales, as E8M0 bytes. Raises InputError if a scale is no power of two.

    Byte 255 is NaN by the standard and infinity in MLX.
    """
    try:
        return exponents(np.frombuffer(data, dtype=np.uint8), source.entry(tensor).dtype)
    except ValueError as error:
        raise _bad(source, tensor, f"holds {error}") from None


def _bad(source: Source, tensor: str, why: str) -> InputError:
    return InputError(
        f"{tensor} {why}",
        where=source.folder / source.where[tensor],
        next="download this file again",
    )


def exponents(scales: Bytes, dtype: str) -> Bytes:
    """Stored bytes of scales -> one E8M0 byte each, of the value 2^(byte - 127).

    F32 is taken where it holds such a value exactly. Raises ValueError that says what it holds otherwise.
    """
    if dtype == "F8_E8M0":
        if scales.size and int(scales.max()) == 255:
            raise ValueError("the scale byte 255, which is not a number")
        return scales
    bits = scales.view(np.uint32)
    found = bits >> 23
    # Powers of two have no mantissa; 2^-127 alone is subnormal: half of the smallest normal number.
    exact = (bits & 0x807FFFFF == 0) & (found > 0) & (found < 255) | (bits == 0x00400000)
    if not exact.all():
        value = float(scales.view(np.float32)[~exact][0])
        raise ValueError(f"the scale {value:g}, expected a power of two from 2^-127 to 2^127")
    return found.astype(np.uint8)


def check_codes(codes: Bytes) -> None:
    """Raises ValueError if one of these E4M3 codes is not a number."""
    for start in range(0, codes.size, AT_ONCE):
        # The largest byte is found ten times faster than a given one.
        if int((codes[start : start + AT_ONCE] & 0x7F).max()) == 0x7F:
            raise ValueError("a weight that is not a number (E4M3 code 0x7F or 0xFF)")


def expand_scales(scales: Bytes, rows: int, columns: int) -> Bytes:
    """[ceil(rows/128), ceil(columns/128)] -> [rows, columns/32]: one scale per row and 32 columns."""
    wide = np.repeat(scales, FP8_BLOCK // MX_GROUP, axis=1)[:, : columns // MX_GROUP]
    return np.repeat(wide, FP8_BLOCK, axis=0)[:rows]
