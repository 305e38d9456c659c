"""Records from disk into memory: open files, positioned reads, threads that do them.

A file stays open from the start, so that one replaced by a rename is read on as it was. One that is cut off
or written over is noticed by its length and time of change after every read, before the bytes are used.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsv4_mlx.errors import Dsv4Error, InputError, MachineError
from dsv4_mlx.weights.records import Range, RecordMap, joined

PAUSES = (0.05, 0.25)  # seconds before a failed read is tried again, and again
VERIFY = "check the model: dsv4-mlx verify MODEL"


@dataclass(frozen=True)
class _File:
    path: Path
    descriptor: int
    size: int
    changed: int  # st_mtime_ns when it was opened


class Files:
    """Files opened for positioned reads, each once. May be used by many threads."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}

    def open(self, path: Path, size: int) -> None:
        """Open a file that must have `size` bytes. Raises InputError, MachineError."""
        if path in self._files:
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InputError("a file of the model is missing", where=path) from None
        except OSError as error:
            raise MachineError(f"the file can't be opened: {error.strerror}", where=path) from None
        weakref.finalize(self, os.close, descriptor)
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("this is no ordinary file", where=path)
        if facts.st_size != size:
            raise InputError(f"the file has {facts.st_size} bytes, expected {size}", where=path)
        self._files[path] = _File(path, descriptor, size, facts.st_mtime_ns)

    def read(self, path: Path, offset: int, into: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the file's bytes from `offset` on.

        Raises OSError when the device fails, InputError when the file is not what it was.
        """
        file, left, at = self._files[path], list(into), offset
        while left:
            count = os.preadv(file.descriptor, left, at)
            if count == 0:
                raise InputError(f"the file ends at byte {at}, it had {file.size}", where=path, next=VERIFY)
            at += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left and count:
                left[0] = left[0][count:]
        self._check(file)

    def _check(self, file: _File) -> None:
        facts = os.fstat(file.descriptor)
        if (facts.st_size, facts.st_mtime_ns) != (file.size, file.changed):
            raise InputError(
                "the file has been changed since it was opened",
                where=file.path,
                next="start again when nothing writes to the model; " + VERIFY,
            )


class RecordReader(Protocol):
    """Reads one expert's record. Called by several threads at a time, for different memory."""

    def __call__(self, records: RecordMap, expert: int, into: memoryview) -> None:
        """Fill `into`, record_bytes long. Raises Dsv4Error."""


class DiskReader:
    """Scattered positioned reads. `verify`: compare each record's SHA-256 with the manifest's."""

    def __init__(
        self, files: Files, *, verify: bool = False, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._files, self._verify, self._pause = files, verify, pause

    def __call__(self, records: RecordMap, expert: int, into: memoryview) -> None:
        runs = joined(records.ranges[expert])
        for run in runs:
            self._run(records, expert, run, into)
        records.finish(expert, into)
        if self._verify:
            found = hashlib.sha256(into).hexdigest()
            if found != records.layout.digests[expert]:
                raise InputError(
                    f"expert {expert} has the SHA-256 {found[:16]}..., the manifest says "
                    f"{records.layout.digests[expert][:16]}...: its bytes are damaged",
                    where=records.files[runs[0][0].file],
                    next=VERIFY,
                )

    def _run(self, records: RecordMap, expert: int, run: list[Range], into: memoryview) -> None:
        path = records.files[run[0].file]
        for pause in (*PAUSES, None):
            try:
                buffers = [into[part.at : part.at + part.bytes] for part in run]
                return self._files.read(path, run[0].offset, buffers)
            except OSError as error:
                if pause is None:
                    raise MachineError(
                        f"expert {expert} can't be read: {error.strerror or error}, "
                        f"tried {1 + len(PAUSES)} times",
                        where=path,
                        next="check the disk and its connection, then ask again",
                    ) from None
                self._pause(pause)


class ReaderPool:
    """Threads that read records in the order they were asked for."""

    def __init__(self, reader: RecordReader, threads: int) -> None:
        self.reader, self.threads = reader, threads
        self._pool = ThreadPoolExecutor(threads, "expert-reader")

    def submit(self, records: RecordMap, expert: int, into: memoryview) -> Future[None]:
        return self._pool.submit(self._read, records, expert, into)

    def _read(self, records: RecordMap, expert: int, into: memoryview) -> None:
        try:
            self.reader(records, expert, into)
        except OSError as error:  # a reader's own errors are Dsv4Error; anything else is a bug
            raise MachineError(f"expert {expert} can't be read: {error}", where=records.files[0]) from None

    def resize(self, threads: int) -> None:
        """Use another number of threads from now on. Reads that were asked for are still done."""
        self._pool.shutdown(wait=False)
        self.threads, self._pool = threads, ThreadPoolExecutor(threads, "expert-reader")

    def close(self) -> None:
        """Drop what was not begun, wait for what was."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def read_failure(future: Future[None]) -> Dsv4Error | None:
    """The expected error of a read that ended; other exceptions, which are bugs, are raised."""
    error = future.exception()
    if error is None or isinstance(error, Dsv4Error):
        return error
    raise error
