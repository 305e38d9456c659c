"""Two measurements of seconds: how fast memory is copied, how fast the disk is read."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import mlx.core as mx

from dsv4_mlx.machine.disks import free_bytes

_BLOCK = 8 << 20  # bytes of one read
_SPARE = 4 << 30  # free space below which nothing is written
_F_NOCACHE = 48  # macOS: reads and writes past the page cache
_F_FULLFSYNC = 51


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

    None where there is too little room, or where the system doesn't let reads pass its cache (a folder in
    memory, some network disks). The file is gone afterwards. Raises OSError for a folder that can't be used.
    """
    if free_bytes(folder) < max(_SPARE, 2 * count):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="read-speed-") as file:
        block = os.urandom(_BLOCK)
        for _ in range(count // _BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        if sys.platform == "darwin":
            _control(file.fileno(), _F_FULLFSYNC)
        elif hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return _read(file.name)


def _read(name: str) -> float | None:
    with _uncached(name) as descriptor, mmap.mmap(-1, _BLOCK) as page_aligned:
        if descriptor is None:
            return None
        done, start = 0, time.perf_counter()
        while count := os.readv(descriptor, [page_aligned]):
            done += count
        return done / (time.perf_counter() - start)


@contextmanager
def _uncached(name: str) -> Iterator[int | None]:
    """The file, opened so that reads come from the disk; None where that is refused."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(name, flags)
    except OSError:
        yield None
        return
    try:
        if sys.platform == "darwin":
            _control(descriptor, _F_NOCACHE)
        yield descriptor
    finally:
        os.close(descriptor)


def _control(descriptor: int, command: int) -> None:
    import fcntl

    fcntl.fcntl(descriptor, command, 1)
