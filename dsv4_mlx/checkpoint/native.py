"""Official bytes as MLX takes them, nothing lost: codes are MLX's already, an FP8 scale is repeated.

One expert is one record, whether it is stored so or put together while reading: the converter, the reader of
official folders and paging take its shape from here.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dsv4_mlx.manifest import ALIGNMENT, Segment
from dsv4_mlx.official import FP4_GROUP, FP8_BLOCK, ITEM_BYTES, Weight

MX_GROUP = 32  # columns that share a scale in mxfp8 and mxfp4
SEGMENT_SOURCE = {  # segment -> (w1, w3 or w2; codes or scales)
    "gate_codes": (0, 0), "up_codes": (1, 0), "down_codes": (2, 0),
    "gate_scales": (0, 1), "up_scales": (1, 1), "down_scales": (2, 1),
}  # fmt: skip

Bytes = npt.NDArray[np.uint8]


def expand_scales(scales: Bytes, rows: int, columns: int) -> Bytes:
    """[ceil(rows/128), ceil(columns/128)] -> [rows, columns/32]: one scale per row and 32 columns."""
    wide = np.repeat(scales, FP8_BLOCK // MX_GROUP, axis=1)[:, : columns // MX_GROUP]
    return np.repeat(wide, FP8_BLOCK, axis=0)[:rows]


def record_segments(gate: Weight, up: Weight, down: Weight) -> tuple[Segment, ...]:
    """The ranges of one expert's record, in the order of manifest.SEGMENTS."""
    segments: list[Segment] = []
    offset = 0

    def add(name: str, dtype: str, shape: tuple[int, int]) -> None:
        nonlocal offset
        size = math.prod(shape) * ITEM_BYTES[dtype]
        segments.append(Segment(name, offset, size, shape, dtype))
        offset += size

    for names, weights in ((("gate", "up"), (gate, up)), (("down",), (down,))):
        for name, weight in zip(names, weights, strict=True):
            add(f"{name}_codes", "U32", (weight.shape[0], weight.shape[1] // 8))
        for name, weight in zip(names, weights, strict=True):
            add(f"{name}_scales", "U8", (weight.shape[0], weight.shape[1] // FP4_GROUP))
    return tuple(segments)


def record_bytes(segments: tuple[Segment, ...]) -> int:
    """A record with its padding."""
    used = segments[-1].offset + segments[-1].bytes
    return -(-used // ALIGNMENT) * ALIGNMENT
