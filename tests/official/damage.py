"""Ways to damage an official checkpoint, for tests of what reads one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"


def shard(folder: Path, number: int = 2) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number - 1]


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a shard with a changed header; the data stays."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add_tensor(folder: Path, name: str, number: int = 2, index: bool = True) -> None:
    """Append an F32 scalar to a shard and, unless told otherwise, to the index."""
    path = shard(folder, number)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    end = len(data) - 8 - length
    path.write_bytes(data + bytes(4))
    edit_header(
        path, lambda h: h.update({name: {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}})
    )
    if index:
        edit_json(
            folder / INDEX,
            lambda i: (
                i["weight_map"].update({name: path.name}),
                i["metadata"].update(total_size=i["metadata"]["total_size"] + 4),
            ),
        )


def poke(folder: Path, tensor: str, value: int, at: int = 0) -> None:
    """Overwrite one byte of a tensor."""
    path = folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start = json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]
    data[8 + length + start + at] = value
    path.write_bytes(data)
