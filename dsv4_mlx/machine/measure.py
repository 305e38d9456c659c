"""Two measurements of seconds: how fast memory is copied, how fast the disk is read."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import mlx.core as mx

from dsv4_mlx.machine.disks import free_bytes, to_disk

_BLOCK = 8 << 20  # bytes of one read
_SPARE = 4 << 30  # free space below which nothing is written
_FASTER = 1.5  # a second reading that is faster came out of a cache
_F_NOCACHE = 48
_MS_INVALIDATE = 2  # macOS: drop what the page cache has


def copy_bandwidth(count: int, passes: int = 5) -> float:
    """Bytes read and written per second by MLX's own device when it adds one to an array: the median pass."""
    x = mx.zeros(count // 4, mx.float32)
    mx.eval(x, x + 1)
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        mx.eval(x + 1)
        seconds.append(time.perf_counter() - start)
    return 2 * count / median(seconds)


def read_speed(folder: Path, count: int) -> float | None:
    """Bytes per second of a file written there for the purpose and read back past the page cache.

    None where there is too little room, and where the system's cache can't be passed: it holds the file
    before it is read, or reading a part again is faster (a folder in memory, some network disks). The file is
    gone afterwards. Raises OSError for a folder that can't be used.
    """
    if free_bytes(folder) < max(_SPARE, 2 * count):
        return None
    blocks = max(2, count // _BLOCK)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="read-speed-", buffering=0) as file:
        _uncached(file.fileno())
        with mmap.mmap(-1, _BLOCK) as page_aligned:
            page_aligned.write(os.urandom(_BLOCK))
            for _ in range(blocks):
                file.write(page_aligned)
        to_disk(file.fileno())
        if _leave_cache(file.fileno()):
            return None
        half = blocks // 2 * _BLOCK
        fresh, again, rest = (
            _read(file.name, *part) for part in ((0, half), (0, half), (half, blocks * _BLOCK - half))
        )
    if fresh is None or again is None or rest is None or again > _FASTER * max(fresh, rest):
        return None
    return 2 / (1 / fresh + 1 / rest)


def _read(name: str, start: int, count: int) -> float | None:
    """Bytes per second of this range; None where the file can't be opened for reading past the cache."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(name, flags)
    except OSError:
        return None
    try:
        _uncached(descriptor)
        with mmap.mmap(-1, _BLOCK) as page_aligned:
            done, began = 0, time.perf_counter()
            while done < count and (read := os.preadv(descriptor, [page_aligned], start + done)):
                done += read
            return done / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def _uncached(descriptor: int) -> None:
    """macOS: read and write past the page cache from now on. Elsewhere O_DIRECT does it."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, _F_NOCACHE, 1)


def _leave_cache(descriptor: int) -> bool:
    """Drop the file from the page cache; whether the system says that part of it is still there."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    size = os.fstat(descriptor).st_size
    if not size:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with mmap.mmap(descriptor, size) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            place, length = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size)
            if sys.platform == "darwin":
                libc.msync(place, length, _MS_INVALIDATE)
            unknown = libc.mincore(place, length, pages)
        finally:
            del start  # else the map can't be closed
    return not unknown and any(page & 1 for page in pages.raw)
