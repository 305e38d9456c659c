"""Ways to damage an official checkpoint, for tests of what reads one."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint.decoding import RawFile

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


def add_tensor(
    folder: Path,
    name: str,
    number: int = 2,
    index: bool = True,
    dtype: str = "F32",
    shape: tuple[int, ...] = (1,),
    more: bytes = bytes(4),
) -> None:
    """Append a tensor, unless told otherwise an F32 scalar, to a shard and to the index."""
    path = shard(folder, number)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    end = len(data) - 8 - length
    path.write_bytes(data + more)
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(more)]}
    edit_header(path, lambda h: h.update({name: entry}))
    if index:
        edit_json(
            folder / INDEX,
            lambda i: (
                i["weight_map"].update({name: path.name}),
                i["metadata"].update(total_size=i["metadata"]["total_size"] + len(more)),
            ),
        )


def narrow_scales(folder: Path, to: Path, wanted: str = "") -> Path:
    """A copy of a checkpoint with F32 scales, those whose name has `wanted`, as E8M0."""
    shutil.copytree(folder, to)
    total = 0
    for path in sorted(to.glob("*.safetensors")):
        tensors = RawFile(path).tensors
        for name, (_, shape, data) in tensors.items():
            if name.endswith(".scale") and wanted in name:
                codes = (np.frombuffer(data, "<u4") >> 23).astype(np.uint8)
                tensors[name] = "F8_E8M0", shape, codes.tobytes()
        total += write_shard(path, tensors)
    edit_json(to / INDEX, lambda index: index["metadata"].update(total_size=total))
    return to


def write_shard(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> int:
    """The bytes of its tensors."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    return end


def poke(folder: Path, tensor: str, value: int | bytes, at: int = 0) -> None:
    """Overwrite a byte of a tensor, or several."""
    path = folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0] + at
    written = bytes([value]) if isinstance(value, int) else value
    data[start : start + len(written)] = written
    path.write_bytes(data)
