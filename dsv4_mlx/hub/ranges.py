"""A file in several ranges at a time, into one file of its full size.

A journal beside it marks the blocks that are there: a later run fetches only the others. Neither is forced to
disk: what a loss of power leaves is found by the file's digest, and the file is fetched again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Protocol

from dsv4_mlx.hub.remote import FetchStopped, Remote, RemoteFile

BLOCK = 1 << 20  # bytes that are marked at once: of each range, what a killed process has to fetch again
SPAN = 32  # blocks of a request
AT_ONCE = 8  # requests beside each other
_TICK = 0.1  # seconds between looks at whether the caller still wants it
_GRACE = 1.0  # seconds for the ranges to end; a stalled connection may not let them

Advance = Callable[[int], None]


@dataclass
class ByteRange:
    """The bytes of a file that one request asks for; those before `at` have come."""

    at: int
    end: int


class PartFile:
    """A file on its way, and its journal. A mark is one byte, written after the bytes of its block."""

    def __init__(self, part: Path, file: RemoteFile) -> None:
        """Take up what an earlier run has left of the same file, or begin. Raises OSError."""
        self.bytes = file.bytes
        journal, marks = _journal(part), _marks(part, file)
        if marks is None:
            marks = bytes(blocks_of(file.bytes))
            write(journal, _title(file) + marks)
        self._marks, self._first = bytearray(marks), len(_title(file))
        self._part = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        self._journal = os.open(journal, os.O_RDWR)
        os.ftruncate(self._part, file.bytes)

    def close(self) -> None:
        os.close(self._part)
        os.close(self._journal)

    def left(self) -> list[ByteRange]:
        """What is to be fetched."""
        return spans_of(self.bytes, self._marks)

    def write(self, at: int, data: bytes) -> None:
        """Raises OSError."""
        while data:
            count = os.pwrite(self._part, data, at)
            data, at = data[count:], at + count

    def mark(self, start: int, end: int) -> None:
        """Bytes `start` to `end` have been written, and those of their first block before. Raises OSError."""
        last = len(self._marks) if end == self.bytes else end // BLOCK
        for index in range(start // BLOCK, last):
            if not self._marks[index]:
                os.pwrite(self._journal, b"\1", self._first + index)
                self._marks[index] = 1


class Target(Protocol):
    """Where the bytes go."""

    def write(self, at: int, data: bytes) -> None:
        """Raises OSError."""

    def mark(self, start: int, end: int) -> None:
        """Bytes `start` to `end` have been written."""


def blocks_of(size: int) -> int:
    """How many blocks a file has."""
    return -(-size // BLOCK)


def spans_of(size: int, marks: bytes | bytearray) -> list[ByteRange]:
    """The blocks of a file without a mark, in order, SPAN of them at most in one."""
    found: list[ByteRange] = []
    for index in (index for index, done in enumerate(marks) if not done):
        start, end = index * BLOCK, min((index + 1) * BLOCK, size)
        if found and found[-1].end == start and start - found[-1].at < SPAN * BLOCK:
            found[-1].end = end
        else:
            found.append(ByteRange(start, end))
    return found


def write(path: Path, data: bytes) -> None:
    """New contents under that name. Not forced to disk: readers check them, and all can be fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def bytes_here(part: Path, file: RemoteFile) -> int:
    """How much of a file on its way is there for good."""
    marks = _marks(part, file) or b""
    return sum(min(BLOCK, file.bytes - index * BLOCK) for index, done in enumerate(marks) if done)


def forget(part: Path) -> None:
    """A file on its way, and its journal."""
    part.unlink(missing_ok=True)
    _journal(part).unlink(missing_ok=True)


def _journal(part: Path) -> Path:
    return part.with_suffix(".blocks")


def _title(file: RemoteFile) -> bytes:
    return f"{file.digest} {file.bytes} {BLOCK}\n".encode()


def _marks(part: Path, file: RemoteFile) -> bytes | None:
    """One byte for each block; None where nothing is there, or what is there is of another file."""
    title, count = _title(file), blocks_of(file.bytes)
    try:
        found, size = _journal(part).read_bytes(), part.stat().st_size
    except OSError:
        return None
    usable = found.startswith(title) and len(found) == len(title) + count and size == file.bytes
    return found[len(title) :] if usable else None


class _NoRanges(Exception):
    """The server sends a file from its beginning only."""


class RangeDownload:
    """Fetches what is not there yet of one file. `advance(n)`: n more bytes have come, or were there already;
    below 0 where they come again."""

    def __init__(self, remote: Remote, file: RemoteFile, advance: Advance, *, alone: bool = False) -> None:
        """alone: in one request, for a server that sends a file from its beginning only."""
        self.remote, self.file, self._advance, self._alone = remote, file, advance, alone
        self._spans: deque[ByteRange] = deque()
        self._threads: list[Thread] = []
        self._come = 0
        self._error: BaseException | None = None
        self._halt = Event()
        self._lock = Lock()
        self._said: tuple[str, int] | None = None
        self._retry = replace(remote.retry, tell=self._tell)

    def into(self, part: Path) -> float:
        """Bytes per second of what came. Raises InputError, MachineError, DiskFull, OSError, FetchStopped."""
        out = PartFile(part, self.file)
        try:
            spans, begin = out.left(), time.monotonic()
            left = sum(span.end - span.at for span in spans)
            self._count(self.file.bytes - left)
            self.fetch(out, spans)
            return left / max(time.monotonic() - begin, 1e-6)
        finally:
            if not any(thread.is_alive() for thread in self._threads):  # else one of them may still write
                out.close()

    def fetch(self, out: Target, spans: list[ByteRange]) -> None:
        """The spans, several at a time; of a server that knows no ranges the whole file. Raises as `into`."""
        try:
            self._fetch(out, spans)
        except _NoRanges:
            self._count(-self._come)
            alone = RangeDownload(self.remote, self.file, self._advance, alone=True)
            alone._fetch(out, [ByteRange(0, self.file.bytes)])

    def _fetch(self, out: Target, spans: list[ByteRange]) -> None:
        """All of the spans, in threads: a process that is to end doesn't wait for a stalled connection."""
        self._spans.extend(spans)
        self._threads = [Thread(target=self._work, args=(out,), daemon=True) for _ in spans[:AT_ONCE]]
        for thread in self._threads:
            thread.start()
        try:
            for thread in self._threads:
                while thread.is_alive() and not self._halt.is_set():
                    thread.join(_TICK)
                    if self.remote.stop.is_set():
                        self._halt.set()
        except BaseException:  # Ctrl-C
            self._halt.set()
            raise
        finally:
            if self._halt.is_set():
                until = time.monotonic() + _GRACE
                for thread in self._threads:
                    thread.join(max(0.0, until - time.monotonic()))
        if self._halt.is_set():
            raise self._error or FetchStopped

    def _work(self, out: Target) -> None:
        what = f"{self.file.name} of {self.remote.repository}"
        try:
            while self._spans:
                try:
                    span = self._spans.popleft()
                except IndexError:
                    return
                self._retry.call(what, partial(self._go_on, out, span), lambda: self._come, self._halt)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._halt.set()

    def _go_on(self, out: Target, span: ByteRange) -> None:
        """The rest of a span. Raises OSError if not all of it comes."""
        if self._halt.is_set():
            raise FetchStopped
        wanted = span.end - span.at
        with self.remote.stream(self.file.name, span.at, span.end) as (first, pieces):
            if first != span.at and not self._alone:
                raise _NoRanges
            self._count(first - span.at)
            span.at = first
            for piece in pieces:
                if self._halt.is_set():
                    raise FetchStopped
                data = piece[: span.end - span.at]
                out.write(span.at, data)
                with self._lock:
                    out.mark(span.at, span.at + len(data))
                span.at += len(data)
                self._count(len(data))
                if span.at == span.end:
                    return
        raise OSError(f"{wanted - (span.end - span.at)} of {wanted} bytes came")

    def _count(self, count: int) -> None:
        with self._lock:
            self._come += count
            self._advance(count)

    def _tell(self, line: str) -> None:
        """Once where several ranges fail alike."""
        with self._lock:
            fresh, self._said = self._said != (line, self._come), (line, self._come)
        if fresh:
            self.remote.retry.tell(line)
