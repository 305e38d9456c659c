"""Official bytes as MLX takes them, nothing lost: codes are MLX's already, an FP8 scale is repeated.

One expert is one record, whether it is stored so or put together while reading: the converter, the reader of
official folders and paging take its shape from here.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.inventory import FP8_BLOCK, Form, Weight
from dsv4_mlx.checkpoint.manifest import ALIGNMENT, SEGMENT_ITEM_BYTES, Segment, packed

NATIVE: dict[Form, Literal["raw", "mxfp8", "mxfp4"]] = {"raw": "raw", "fp8": "mxfp8", "fp4": "mxfp4"}
MX_GROUP = 32  # columns that share a scale in mxfp8 and mxfp4
AT_ONCE = 2**20  # codes looked at together
SEGMENT_SOURCE = {  # segment -> (w1, w3 or w2; codes or scales)
    "gate_codes": (0, 0), "up_codes": (1, 0), "down_codes": (2, 0),
    "gate_scales": (0, 1), "up_scales": (1, 1), "down_scales": (2, 1),
}  # fmt: skip

Bytes = npt.NDArray[np.uint8]


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


def record_segments(gate: Weight, up: Weight, down: Weight, format: str) -> tuple[Segment, ...]:
    """The ranges of one expert's record in that format, in the order of manifest.SEGMENTS."""
    return segments_of(gate.shape, up.shape, down.shape, format)


def segments_of(
    gate: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...], format: str
) -> tuple[Segment, ...]:
    """As record_segments, of matrices of these shapes [out, in]."""
    segments: list[Segment] = []
    offset = 0
    for named in ((("gate", gate), ("up", up)), (("down", down),)):
        parts = {name: packed(format, *shape) for name, shape in named}
        for part in parts[named[0][0]]:
            for name, _ in named:
                dtype, shape = parts[name][part]
                size = math.prod(shape) * SEGMENT_ITEM_BYTES[dtype]
                kind = "codes" if part == "weight" else part
                segments.append(Segment(f"{name}_{kind}", offset, size, shape, dtype))
                offset += size
    return tuple(segments)


def record_bytes(segments: tuple[Segment, ...]) -> int:
    """A record with its padding."""
    used = segments[-1].offset + segments[-1].bytes
    return -(-used // ALIGNMENT) * ALIGNMENT
