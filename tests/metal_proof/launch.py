"""One call of a compiled kernel, through ctypes: its arrays in place, launched under a schedule at a time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from metal_proof.arrays import BFloat16
from metal_proof.build import Library, runtime_library
from metal_proof.findings import Finding, RawFinding, Regions, describe, lines_of
from metal_proof.signature import Signature

_CAPACITY = 32
_ROLES = {"input": 0, "output": 1, "shape": 2, "strides": 2, "ndim": 2}


# The next two mirror runtime/abi.h.
class BufferRow(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("role", ctypes.c_int32),
        ("initialised", ctypes.c_int32),
        ("loaded", ctypes.c_uint64),
        ("stored", ctypes.c_uint64),
        ("unwritten", ctypes.c_uint64),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(BufferRow)),
        ("buffer_count", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("seed", ctypes.c_uint64),
        ("check", ctypes.c_int32),
        ("finding_capacity", ctypes.c_int32),
        ("finding_count", ctypes.c_int32),
        ("findings", ctypes.POINTER(RawFinding)),
        ("access_limit", ctypes.c_uint64),
        ("threadgroup_bytes", ctypes.c_uint64),
        ("partial_collectives", ctypes.c_uint64),
    ]


# The runtime's state is global, and ctypes releases the interpreter's lock during a call.
_launching = threading.Lock()
_loaded: list[ctypes.CDLL] = []


def _runtime() -> ctypes.CDLL:
    if not _loaded:
        library = ctypes.CDLL(str(runtime_library()))
        library.proof_launch.argtypes = [ctypes.c_void_p]
        library.proof_launch.restype = None
        library.proof_threadgroup_name.argtypes = [ctypes.c_int]
        library.proof_threadgroup_name.restype = ctypes.c_char_p
        _loaded.append(library)
    return _loaded[0]


@contextmanager
def flushed() -> Iterator[None]:
    """Subnormal numbers are zero for this thread, and for threads that it starts meanwhile."""
    before = _runtime().proof_flush(1)
    if before < 0:
        raise RuntimeError("this processor can't flush subnormal numbers here; run without `flush`")
    try:
        yield
    finally:
        _runtime().proof_flush(before)


def extent(array: npt.NDArray[Any]) -> int:
    """Bytes from an array's first element to the end of its last, gaps included."""
    if not array.size:
        return 0
    gaps: int = sum((count - 1) * step for count, step in zip(array.shape, array.strides, strict=True))
    return gaps + array.itemsize


@dataclass
class Outcome:
    """What one launch left besides the outputs."""

    buffers: dict[str, BufferRow]
    raw: list[RawFinding]
    threadgroup_bytes: int
    partial_collectives: int


@dataclass
class Call:
    signature: Signature
    library: Library
    named: dict[str, npt.NDArray[Any]]
    output_dtypes: dict[str, str]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    init_value: float | None
    check: bool
    access_limit: int
    flush: bool = False

    def __post_init__(self) -> None:
        self.arrays = [self._argument(item.role, self.named[item.owner]) for item in self.signature.arguments]
        self.outputs = [self.named[name] for name in self.output_dtypes]

    @staticmethod
    def _argument(role: str, owner: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if role == "shape":
            return np.array(owner.shape, dtype=np.int32)
        if role == "strides":
            return np.array([step // owner.itemsize for step in owner.strides], dtype=np.int64)
        if role == "ndim":
            return np.array(owner.ndim, dtype=np.int32)
        return owner

    def _clear_outputs(self) -> None:
        """A fresh buffer holds anything; all ones is a NaN in every float type."""
        for name, dtype in self.output_dtypes.items():
            array = self.named[name]
            if self.init_value is None:
                array.reshape(-1).view(np.uint8).fill(0xFF)
            elif dtype == "bfloat16":
                array.fill(BFloat16.from_float32(self.init_value).bits)
            else:
                array.fill(self.init_value)

    def once(self, seed: int) -> Outcome:
        self._clear_outputs()
        rows = (BufferRow * len(self.arrays))()
        for row, argument, array in zip(rows, self.signature.arguments, self.arrays, strict=True):
            row.data, row.size, row.role = array.ctypes.data, extent(array), _ROLES[argument.role]
            row.initialised = int(self.init_value is not None)
        raw = (RawFinding * _CAPACITY)()
        launch = _Launch(
            self.library.thread,
            rows,
            len(rows),
            self.grid,
            self.threadgroup,
            seed,
            self.check,
            _CAPACITY,
            0,
            raw,
        )
        launch.access_limit = self.access_limit
        with _launching, flushed() if self.flush else nullcontext():
            _runtime().proof_launch(ctypes.byref(launch))
        return Outcome(
            {item.name: row for item, row in zip(self.signature.arguments, rows, strict=True)},
            list(raw[: launch.finding_count]),
            launch.threadgroup_bytes,
            launch.partial_collectives,
        )

    def describe(self, raw: Sequence[RawFinding]) -> list[Finding]:
        if not raw:
            return []
        name_of = _runtime().proof_threadgroup_name
        ids = {-1 - item.region for item in raw if item.region < 0}
        regions = Regions(
            [argument.name for argument in self.signature.arguments],
            [array.itemsize for array in self.arrays],
            [array.nbytes for array in self.arrays],
            {number: (name_of(number) or b"?").decode() for number in ids},
        )
        places = [party.place for item in raw for party in (item.now, item.before)]
        lines = lines_of(self.library.path, places)
        return [describe(item, self.signature, regions, lines) for item in raw]
