"""Bytes that no valid checkpoint holds. Each search is one fast pass over what was just read."""

from __future__ import annotations

import numpy as np

from dsv4_mlx.checkpoint.record import Bytes, check_codes, exponents
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.errors import InputError


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
