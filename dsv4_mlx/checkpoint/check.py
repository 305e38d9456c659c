"""Bytes that no valid checkpoint holds. Each search is one fast pass over what was just read."""

from __future__ import annotations

import numpy as np

from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.errors import InputError


def check_bytes(source: Source, tensor: str, data: memoryview) -> None:
    """Raises InputError if `data`, part of `tensor`, holds a value that can't be computed with.

    E8M0 byte 255 is NaN by the standard and infinity in MLX; E4M3 codes 0x7F and 0xFF are NaN; an id in a
    hash table that names no expert would read another tensor's memory.
    """
    dtype = source.entry(tensor).dtype
    values = np.frombuffer(data, dtype=np.uint8)
    if not values.size:
        return
    # The largest byte is found ten times faster than a given one.
    if dtype == "F8_E8M0" and int(values.max()) == 255:
        raise _bad(source, tensor, "holds the scale byte 255, which is not a number")
    if dtype == "F8_E4M3" and int((values & 0x7F).max()) == 0x7F:
        raise _bad(source, tensor, "holds a weight that is not a number (E4M3 code 0x7F or 0xFF)")
    if dtype == "I64":
        ids = values.view(np.int64)
        if int(ids.min()) < 0 or int(ids.max()) >= source.config.experts:
            raise _bad(source, tensor, f"names an expert outside 0 to {source.config.experts - 1}")


def _bad(source: Source, tensor: str, why: str) -> InputError:
    return InputError(
        f"{tensor} {why}",
        where=source.folder / source.where[tensor],
        next="download this file again",
    )
