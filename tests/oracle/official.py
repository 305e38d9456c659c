"""An independent reader of the official checkpoint format, in numpy only.

It shares no code with the project's own reader, converter or MLX: a mistake in how bytes become numbers
then shows as a difference instead of cancelling out. Speed does not matter here, clarity does.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FP8_BLOCK = 128  # one scale per 128 x 128 weights
FP4_BLOCK = 32  # one scale per 32 weights of a row
RAW_TYPES: dict[str, np.dtype[Any]] = {
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I8": np.dtype("u1"),  # two FP4 codes per byte
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor's bytes are. `start` counts from the beginning of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


def e4m3_value(code: int) -> float:
    """The number an E4M3 (fn) byte stands for, from its sign, exponent and mantissa fields."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def e2m1_value(code: int) -> float:
    """The number a 4-bit E2M1 code stands for."""
    sign = -1.0 if code & 8 else 1.0
    exponent, mantissa = (code >> 1) & 3, code & 1
    if exponent == 0:
        return sign * mantissa * 0.5
    return sign * (2 + mantissa) * 2.0 ** (exponent - 2)


E4M3 = np.array([e4m3_value(code) for code in range(256)], dtype=np.float32)
E2M1 = np.array([e2m1_value(code) for code in range(16)], dtype=np.float32)
E8M0 = np.array([*(2.0 ** (byte - 127) for byte in range(255)), float("nan")], dtype=np.float32)


def decode_bf16(raw: Array) -> Array:
    """BF16 is the upper half of a float32."""
    wide: Array = raw.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def decode_fp8(codes: Array, scales: Array) -> Array:
    """E4M3 codes [out, in] times scales [ceil(out/128), ceil(in/128)]; edge blocks are partial.

    Scales are E8M0 bytes, or float32 numbers where the experts are FP8.
    """
    rows, columns = codes.shape
    expected = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
    if scales.shape != expected:
        raise ValueError(f"scales {scales.shape} for weights {codes.shape}: expected {expected}")
    numbers = scales if scales.dtype == np.float32 else E8M0[scales]
    factors = numbers[np.arange(rows) // FP8_BLOCK][:, np.arange(columns) // FP8_BLOCK]
    return np.asarray(E4M3[codes] * factors, dtype=np.float32)


def decode_fp4(pairs: Array, scales: Array) -> Array:
    """E2M1 pairs [out, in/2], low nibble first, times E8M0 scales [out, in/32]."""
    rows, half = pairs.shape
    if scales.shape != (rows, half * 2 // FP4_BLOCK) or half * 2 % FP4_BLOCK:
        raise ValueError(f"scales {scales.shape} do not fit packed weights {pairs.shape}")
    values = np.empty((rows, half * 2), dtype=np.float32)
    values[:, 0::2] = E2M1[pairs & 15]
    values[:, 1::2] = E2M1[pairs >> 4]
    return np.asarray(values * E8M0[scales][:, np.arange(half * 2) // FP4_BLOCK], dtype=np.float32)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensor table of one safetensors file: 8 bytes of length, then JSON, then the data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    entries = {}
    for name, item in table.items():
        begin, end = item["data_offsets"]
        dtype, shape = item["dtype"], tuple(item["shape"])
        size = RAW_TYPES[dtype].itemsize
        for extent in shape:
            size *= extent
        if size != end - begin:
            raise ValueError(f"{path.name}: {name} has {end - begin} bytes, its shape needs {size}")
        entries[name] = Entry(path, dtype, shape, 8 + length + begin, size)
    return entries


class OfficialCheckpoint(Mapping[str, Array]):
    """Decoded tensors of an official folder by name: float32, or int64 for `tid2eid`.

    A quantised `X.weight` comes out multiplied by its `X.scale`; scales are not listed themselves. Nothing
    is decoded before it is asked for, and experts are not kept, so a large folder can be walked.
    """

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.entries: dict[str, Entry] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, entry in read_header(path).items():
                if name in self.entries:
                    raise ValueError(f"{name} is in {self.entries[name].path.name} and in {path.name}")
                self.entries[name] = entry
        if not self.entries:
            raise ValueError(f"no safetensors files in {folder}")
        self._cache: dict[str, Array] = {}

    def raw(self, name: str) -> Array:
        """The stored bytes as an array of the storage type (codes for FP8, FP4 and BF16)."""
        entry = self.entries[name]
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            data = file.read(entry.length)
        flat: Array = np.frombuffer(data, dtype=RAW_TYPES[entry.dtype])
        return flat.reshape(entry.shape)

    def _decode(self, name: str) -> Array:
        dtype, raw = self.entries[name].dtype, self.raw(name)
        if dtype in ("F8_E4M3", "I8"):
            scales = self.raw(name.removesuffix(".weight") + ".scale")
            return decode_fp8(raw, scales) if dtype == "F8_E4M3" else decode_fp4(raw, scales)
        if dtype == "BF16":
            return decode_bf16(raw)
        return raw.astype(np.int64 if dtype == "I64" else np.float32)

    def __getitem__(self, name: str) -> Array:
        if name not in self.entries or name.endswith(".scale"):
            raise KeyError(name)
        if name in self._cache:
            return self._cache[name]
        value = self._decode(name)
        if ".experts." not in name:
            self._cache[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.entries if not name.endswith(".scale"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def digest(self) -> str:
        """sha256 over the stored tensors of the trunk, independent of sharding and of file metadata.

        Blocks after the trunk are left out: no golden depends on them.
        """
        total = hashlib.sha256()
        for name in sorted(self.entries):
            if name.startswith("mtp."):
                continue
            entry = self.entries[name]
            total.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
            total.update(self.raw(name).tobytes())
        return total.hexdigest()
