"""What the kernels that hold a row in one simdgroup's registers (metal/common/row.h) have in common."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.launch import Template
from dsv4_mlx.ops.types import Rounding

LANES = 32
WIDEST = 1024
_KINDS = {"none": 0, "q8": 1, "q4": 2}


def channels_a_lane(width: int) -> int:
    """Even, so that a lane holds whole pairs."""
    return 2 * -(-width // (2 * LANES))


def template(width: int, table: mx.array, rounding: Rounding) -> Template:
    """K, E, W and the rounding, as all of these kernels take them. `table` complex64 [rows, W / 2]."""
    return (
        ("K", width),
        ("E", channels_a_lane(width)),
        ("W", 2 * table.shape[-1]),
        ("ROUND", _KINDS[rounding.kind]),
        ("CHANNELS", rounding.channels),
        ("BLOCK", rounding.block),
    )


def refuses(width: int, table: mx.array, rounding: Rounding) -> str | None:  # table [T, W / 2]
    lane = channels_a_lane(width)
    if width % lane or not 8 <= width <= WIDEST:
        return f"a row has {width} channels, expected a multiple of {lane} from 8 to {WIDEST}"
    if table.dtype != mx.complex64 or 2 * table.shape[-1] < width:
        return f"the table is {table.dtype} {list(table.shape)}, expected complex64 [rows, >= {width // 2}]"
    if rounding.kind == "none":
        return None
    lanes, rest = divmod(rounding.block, lane)
    if rest or lanes & (lanes - 1) or width % rounding.block or rounding.channels % rounding.block:
        return f"{rounding} of {width} channels needs blocks of a power of two times {lane} channels"
    if rounding.kind == "q4" and (width & (width - 1) or rounding.channels != width):
        return f"{rounding} of {width} channels, expected a power of two and all of them"
    return None


def floats(table: mx.array) -> mx.array:
    """complex64 [rows, W / 2] -> float32 [rows, W]: a view."""
    return table.view(mx.float32)
