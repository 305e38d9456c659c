"""Official and converted tensors decoded from first principles, independently of the package.

Written from the formats' definitions with explicit index arithmetic in float64, so that a mistake in the
converter's shortcuts (views, repeats) can't be repeated here. Slow, and only for small models.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e4m3(code: int) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 0x7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def e2m1(code: int) -> float:
    return -E2M1[code & 7] if code & 8 else E2M1[code & 7]


E4M3_TABLE = np.array([e4m3(code) for code in range(256)])
E2M1_TABLE = np.array([e2m1(code) for code in range(16)])


class RawFile:
    """name -> (dtype, shape, bytes) of a safetensors file."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        self.data_start = 8 + length
        self.tensors: dict[str, tuple[str, list[int], bytes]] = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            self.tensors[name] = (
                entry["dtype"],
                entry["shape"],
                data[self.data_start + first : self.data_start + last],
            )


def official_tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    found: dict[str, tuple[str, list[int], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(RawFile(path).tensors)
    return found


def official_values(tensors: dict[str, tuple[str, list[int], bytes]], name: str) -> Any:
    """float64 values of a quantised official weight [out, in]; a raw tensor as (dtype, shape, bytes)."""
    dtype, shape, data = tensors[name]
    if dtype not in ("F8_E4M3", "I8"):
        return dtype, shape, data
    scale_dtype, scale_shape, scale_data = tensors[name[: -len("weight")] + "scale"]
    codes = np.frombuffer(data, dtype=np.uint8).reshape(shape)
    if scale_dtype == "F32":
        scales = np.frombuffer(scale_data, dtype="<f4").astype(float).reshape(scale_shape)
    else:
        scales = 2.0 ** (np.frombuffer(scale_data, dtype=np.uint8).astype(float) - 127).reshape(scale_shape)
    rows = np.arange(shape[0])[:, None]
    if dtype == "F8_E4M3":
        columns = np.arange(shape[1])[None, :]
        return E4M3_TABLE[codes] * scales[rows // 128, columns // 128]
    columns = np.arange(shape[1] * 2)[None, :]
    nibbles = (codes[rows, columns // 2] >> (4 * (columns % 2))) & 15
    return E2M1_TABLE[nibbles] * scales[rows, columns // 32]


def mx_values(codes: bytes, scales: bytes, shape: tuple[int, int], bits: int) -> Any:
    """float64 values of an mxfp8 or mxfp4 matrix [out, in]: one E8M0 scale per 32 columns."""
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    steps = 2.0 ** (np.frombuffer(scales, dtype=np.uint8).astype(float) - 127).reshape(shape[0], -1)
    words = np.frombuffer(codes, dtype="<u4").reshape(shape[0], -1)
    per_word = 32 // bits
    fields = (words[rows, columns // per_word] >> (bits * (columns % per_word)).astype(np.uint32)) & (
        2**bits - 1
    )
    table = E4M3_TABLE if bits == 8 else E2M1_TABLE
    return table[fields] * steps[rows, columns // 32]


def same_bits(left: Any, right: Any) -> bool:
    """Equal including the sign of zero."""
    return bool(left.shape == right.shape and (left.view(np.uint64) == right.view(np.uint64)).all())
