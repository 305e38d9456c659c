"""Run the steps of a file with reading, hashing and writing overlapped, in bounded memory.

Steps are read ahead by READERS threads, hashed by HASHERS and written by one, all straight from the step's
buffer, so every byte is read once and hashed once. Steps that share a digest are hashed in order; expert
records have one each and are hashed side by side. At most DEPTH steps are in flight: memory is DEPTH buffers
(and, while quantising, a few float copies of one block per reader, and a record each where one is larger than
a buffer), whatever the model's size.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import perf_counter, thread_time
from types import TracebackType
from typing import Any

from dsv4_mlx.checkpoint.files import OutFile, aligned_buffer
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.convert.steps import ConversionStep, OutputSlice

BLOCK = 16 * 2**20  # bytes per step
LARGEST_BLOCK = 512 * 10**6
DEPTH = 6
READERS = 2
HASHERS = 2

Advance = Callable[[int], None]


class Streamer:
    """Threads and buffers for one conversion. Use as a context manager.

    `hash_seconds` is the processor time of hashing, `write_seconds` the time that writing took.
    """

    def __init__(self, reader: SourceReader, block: int = BLOCK) -> None:
        self.block = block
        self.hash_seconds = 0.0
        self.write_seconds = 0.0
        self._reader = reader
        self._buffers = [aligned_buffer(block) for _ in range(DEPTH)]
        self._free = deque(self._buffers)
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._hashers = ThreadPoolExecutor(HASHERS, "hash")
        self._writer = ThreadPoolExecutor(1, "write")
        self._stop = threading.Event()

    def __enter__(self) -> Streamer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for pool in (self._readers, self._hashers, self._writer):
            pool.shutdown(wait=True, cancel_futures=True)

    def run(self, steps: Iterable[ConversionStep], out: OutFile, advance: Advance) -> dict[str, str]:
        """Write every step's bytes to `out`; returns digest key -> SHA-256.

        `advance(n)` is called in this thread after n more bytes were written. Raises what a step raises, and
        OSError if writing fails.
        """
        digests: dict[str, Any] = {}
        flying: deque[tuple[memoryview, Future[float], Future[int]]] = deque()
        previous: Future[float] | None = None  # whose digest may go on in the next step

        def land() -> None:
            buffer, hashed, written = flying[0]
            self.hash_seconds += hashed.result()
            advance(written.result())
            flying.popleft()
            self._free.append(buffer)

        try:
            for step in steps:
                if not self._free:
                    land()
                buffer = self._free.popleft()
                read = self._readers.submit(self._read, step, buffer)
                hashed = self._hashers.submit(
                    self._hash, read, digests, None if step.own_digest else previous
                )
                written = self._writer.submit(self._write, read, out)
                flying.append((buffer, hashed, written))
                previous = hashed
            while flying:
                land()
        except BaseException:
            # The caller will close the file: no write may still be on its way to it.
            self._stop.set()
            self._reader.cancel()
            for _, hashed, written in flying:
                wait((hashed,))
                wait((written,))
            raise
        return {key: digest.hexdigest() for key, digest in digests.items()}

    def _read(self, step: ConversionStep, buffer: memoryview) -> list[OutputSlice]:
        if self._stop.is_set():
            return []
        return step.run(self._reader, buffer)

    def _hash(
        self, read: Future[list[OutputSlice]], digests: dict[str, Any], previous: Future[float] | None
    ) -> float:
        if previous is not None:
            wait((previous,))
        slices = read.result()
        started = thread_time()
        for part in slices:
            for key, first, last in part.digests:
                if key not in digests:
                    digests[key] = hashlib.sha256()
                digests[key].update(part.data[first:last])
        return thread_time() - started

    def _write(self, read: Future[list[OutputSlice]], out: OutFile) -> int:
        slices = read.result()
        started = perf_counter()
        total = 0
        for part in slices:
            out.write(part.data, part.offset)
            total += len(part.data)
        self.write_seconds += perf_counter() - started
        return total


def check_block(block: int) -> None:
    """Raises ValueError."""
    if not 4096 <= block <= LARGEST_BLOCK or block % 4096:
        raise ValueError(f"block is {block}, expected a multiple of 4096 up to {LARGEST_BLOCK}")
