"""Memory for the slots of one layer, which shrinks and grows where it is: no byte is copied or read again.

On a Mac it is pages of this process and MLX's array a buffer over the first of them, made anew when their
number changes. On the CPU it is MLX's own array of the most slots. Pages that hold no slot any more are given
back to the system. Several arrays in place of one would need kernels that take as many, or more launches.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.weights.resident_experts import room

_WORD = 8  # bytes: no dimension may pass 2^31 - 1
_MAP_FIXED = 0x10  # Linux and macOS


class SlotMemory:
    """`slots` records of `record_bytes`, and never more than at first.

    `array`: uint32, of the first of them, or of as many as there were at first. `bytes`: the same bytes,
    writable. Both are others after `resize`.
    """

    array: mx.array
    bytes: memoryview

    def __init__(self, slots: int, record_bytes: int) -> None:
        self.slots, self._most, self._record = slots, slots, record_bytes
        self._on_gpu = mx.metal.is_available()
        self._pages = _pages(slots * record_bytes) if self._on_gpu else None
        self._make()

    def resize(self, slots: int) -> int:
        """Have so many slots; how many of the first hold what they held. No work may be queued."""
        if not 1 <= slots <= self._most:
            raise ValueError(f"{slots} slots, expected 1 to {self._most}")
        kept, self.slots = min(self.slots, slots), slots
        if self._on_gpu:
            del self.array, self.bytes  # the GPU's hold on the pages that go
        in_place = self._pages if self._on_gpu else np.frombuffer(self.bytes, np.uint8)
        if in_place is not None:
            address = in_place.ctypes.data
            _give_back(address + slots * self._record, address + in_place.nbytes)
        if self._on_gpu:
            self._make()
        return 0 if self._on_gpu and self._pages is None else kept

    def _make(self) -> None:
        if self._pages is not None:
            used = self.slots * self._record
            words = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE // _WORD
            try:
                whole = mx.asarray(self._pages[:words], copy=False)
            except (RuntimeError, TypeError, ValueError):
                self._pages = None  # MLX would copy: then its own memory, anew each time
            else:
                records = whole[: used // _WORD].reshape(self.slots, self._record // _WORD)
                self.array = records.view(mx.uint32)
                mx.eval(self.array)
                self.bytes = memoryview(self._pages).cast("B")  # type: ignore[arg-type]
                return
        self.array = room(self.slots, self._record)
        self.bytes = memoryview(self.array).cast("B")  # type: ignore[arg-type]


def _pages(size: int) -> npt.NDArray[np.uint64]:
    """Zeros in whole pages of their own, which take memory when they are written to."""
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    return np.frombuffer(mmap.mmap(-1, whole, mmap.MAP_PRIVATE | mmap.MAP_ANON), np.uint64)


def _give_back(start: int, end: int) -> None:
    """Replace the whole pages between two addresses by empty ones. Where the system refuses they stay."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= last:
        return
    replace: Any = ctypes.CDLL(None).mmap
    replace.restype, replace.argtypes = ctypes.c_void_p, (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
    )  # fmt: skip
    how = mmap.MAP_PRIVATE | mmap.MAP_ANON | _MAP_FIXED
    replace(first, last - first, mmap.PROT_READ | mmap.PROT_WRITE, how, -1, 0)
