"""Arrays and element types at the border between numpy, MLX and a Metal kernel.

numpy has no bfloat16, so a bfloat16 array is carried as its 16-bit patterns with a tag (`BFloat16`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# The Metal spelling MLX gives each element type, its size in bytes, and the numpy type that stores it.
_TYPES: dict[str, tuple[str, type[np.generic]]] = {
    "bool": ("bool", np.bool_),
    "uint8": ("uint8_t", np.uint8),
    "uint16": ("uint16_t", np.uint16),
    "uint32": ("uint32_t", np.uint32),
    "uint64": ("uint64_t", np.uint64),
    "int8": ("int8_t", np.int8),
    "int16": ("int16_t", np.int16),
    "int32": ("int32_t", np.int32),
    "int64": ("int64_t", np.int64),
    "float16": ("float16_t", np.float16),
    "bfloat16": ("bfloat16_t", np.uint16),
    "float32": ("float", np.float32),
    "complex64": ("complex64_t", np.complex64),
}


@dataclass(frozen=True)
class Dtype:
    """An element type by name, for template arguments: numpy has no bfloat16 to say it with."""

    name: str


@dataclass(frozen=True)
class BFloat16:
    """An array of bfloat16 values, stored as their bit patterns."""

    bits: npt.NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def to_float32(self) -> npt.NDArray[np.float32]:
        return (self.bits.astype(np.uint32) << 16).view(np.float32)

    @staticmethod
    def from_float32(values: npt.ArrayLike) -> BFloat16:
        """Round to nearest, ties to even; a NaN stays a NaN."""
        wide = np.asarray(values, dtype=np.float32)
        pattern = wide.view(np.uint32).astype(np.uint64)
        rounded = ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)
        return BFloat16(np.where(np.isnan(wide), np.uint16(0x7FC0), rounded))


Array: TypeAlias = "npt.NDArray[Any] | BFloat16"


def dtype_name(dtype: object) -> str:
    """`mx.float16`, `np.float16`, `np.dtype("float16")` and "float16" all name the same type."""
    if isinstance(dtype, Dtype):
        name = dtype.name
    elif isinstance(dtype, str):
        name = dtype
    elif isinstance(dtype, np.dtype):
        name = dtype.name
    elif isinstance(dtype, type) and issubclass(dtype, np.generic):
        name = np.dtype(dtype).name
    else:
        name = str(dtype).rsplit(".", 1)[-1]
    name = {"bool_": "bool"}.get(name, name)
    if name not in _TYPES:
        raise ValueError(
            f"element type {dtype!r} is unknown to a Metal kernel; expected one of {', '.join(_TYPES)} "
            "(cast the array first: Metal has no float64)"
        )
    return name


def is_dtype(value: object) -> bool:
    return isinstance(value, np.dtype | type | Dtype) or type(value).__name__ == "Dtype"


def metal_type(name: str) -> str:
    return _TYPES[name][0]


def storage_type(name: str) -> type[np.generic]:
    return _TYPES[name][1]


def array_dtype(array: Array) -> str:
    return "bfloat16" if isinstance(array, BFloat16) else dtype_name(array.dtype)


def storage(array: Array, contiguous: bool = True) -> npt.NDArray[Any]:
    """The array a kernel sees: row-contiguous, as `ensure_row_contiguous=True` makes it, or as it lies."""
    raw = array.bits if isinstance(array, BFloat16) else array
    if not contiguous:
        if min(raw.strides, default=0) < 0:
            raise ValueError(f"strides are {raw.strides}: an array that runs backwards is not supported")
        return raw
    # np.ascontiguousarray would turn a 0-d array into a 1-d one, and with it change the signature.
    return np.array(raw, order="C", copy=None)


def from_storage(raw: npt.NDArray[Any], name: str) -> Array:
    return BFloat16(raw) if name == "bfloat16" else raw


def from_mlx(array: Any) -> Array:
    """An `mx.array` as this tool takes it: not copied, with its strides."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        return BFloat16(np.asarray(array.view(mx.uint16)))
    return np.asarray(array)


def to_mlx(array: Array) -> Any:
    """A result as an `mx.array` (copied)."""
    import mlx.core as mx

    if isinstance(array, BFloat16):
        return mx.array(array.bits).view(mx.bfloat16)
    return mx.array(array)
