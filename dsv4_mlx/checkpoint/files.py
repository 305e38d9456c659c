"""Reads and writes of large files past the page cache, where the system allows it.

A conversion touches every byte once, so caching them only costs: the copy, the pages, and whatever else was
in memory. Linux has O_DIRECT, which wants offsets, lengths and memory aligned to 4096; what is not aligned
goes through the cache as usual. macOS has F_NOCACHE, which wants nothing. Where neither works (some file
systems refuse), the files are simply cached. bench/LOG.md has the figures.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
import threading
from pathlib import Path

import numpy as np

PAGE = 4096
SCRATCH = 8 * 2**20  # bytes read past the cache at a time, by each thread
LEAST = 64 * 1024  # shorter reads gain nothing from it

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_local = threading.local()


def aligned_buffer(size: int) -> memoryview:
    """Writable memory that begins on a page."""
    return memoryview(mmap.mmap(-1, size))


class InFile:
    """A file to read from, by any number of threads. Raises OSError; EOFError where the file ends early."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self._direct = _open_direct(path, os.O_RDONLY)
        _no_cache(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def stamp(self) -> tuple[int, int]:
        """Changes when the file is written to."""
        facts = os.fstat(self.descriptor)
        return facts.st_size, facts.st_mtime_ns

    def read(self, start: int, into: memoryview) -> None:
        """Fill `into` from byte `start` on."""
        done = self._read_direct(start, into) if len(into) >= LEAST else 0
        while done < len(into):
            count = os.preadv(self.descriptor, [into[done:]], start + done)
            if count == 0:
                raise EOFError(f"it ends at byte {start + done}")
            done += count

    def _read_direct(self, start: int, into: memoryview) -> int:
        """How much of `into` could be filled past the cache."""
        done = 0
        while self._direct is not None and done < len(into):
            at = start + done
            skip = at % PAGE
            wanted = min(SCRATCH, -(-(skip + len(into) - done) // PAGE) * PAGE)
            try:
                got = os.preadv(self._direct, [_scratch()[:wanted]], at - skip) - skip
            except OSError as error:
                if error.errno == errno.EINVAL:  # the file system wants another alignment
                    return done
                raise
            if got <= 0:
                return done
            count = min(got, len(into) - done)
            place = np.frombuffer(into, np.uint8, count, done)
            np.copyto(place, np.frombuffer(_scratch(), np.uint8, count, skip))  # releases the lock
            done += count
        return done


class OutFile:
    """A new file to write to at any offset, by one thread at a time. Raises OSError."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW
        self.descriptor = os.open(path, flags | os.O_CREAT | os.O_TRUNC, 0o644)
        self._direct = _open_direct(path, flags)
        _no_cache(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`. Whole pages from an `aligned_buffer` pass the cache."""
        view = memoryview(data)
        done = self._write_direct(view, offset)
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], offset + done)

    def _write_direct(self, view: memoryview, offset: int) -> int:
        """How much of `view` could be written past the cache."""
        whole = len(view) // PAGE * PAGE
        if self._direct is None or offset % PAGE or not whole or _address(view) % PAGE:
            return 0
        done = 0
        while done < whole and done % PAGE == 0:
            try:
                done += os.pwrite(self._direct, view[done:whole], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break
        return done


def _open_direct(path: Path, flags: int) -> int | None:
    if not _O_DIRECT:
        return None
    try:
        return os.open(path, flags | _O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _no_cache(descriptor: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)


def _scratch() -> memoryview:
    """This thread's page-aligned memory; released with the thread."""
    if not hasattr(_local, "scratch"):
        _local.scratch = aligned_buffer(SCRATCH)
    scratch: memoryview = _local.scratch
    return scratch


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)
