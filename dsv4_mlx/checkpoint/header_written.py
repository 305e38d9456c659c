"""Safetensors headers, written aligned."""

from __future__ import annotations

import json
import math
from typing import Any

from dsv4_mlx.checkpoint.inventory import ITEM_BYTES
from dsv4_mlx.checkpoint.manifest import ALIGNMENT


def build_header(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of a file that holds these (name, dtype, shape) in this order.

    It is padded with spaces, which the format allows, so that the data begins on an ALIGNMENT boundary.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
