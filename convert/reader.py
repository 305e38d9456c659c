"""Exact reads from the source's shards, safe to share between threads."""

from __future__ import annotations

import os
import threading
from types import TracebackType

from dsv4_mlx.convert.source import Source
from dsv4_mlx.errors import InputError, MachineError


class SourceReader:
    """Open files of one source. Use as a context manager."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._files: dict[str, int] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self._opening = threading.Lock()

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, shard: str, start: int, into: memoryview) -> None:
        """Fill `into` from the shard's byte `start`. Raises MachineError."""
        descriptor = self._open(shard)
        done = 0
        while done < len(into):
            try:
                count = os.preadv(descriptor, [into[done:]], start + done)
            except OSError as error:
                raise self._failed(shard, error.strerror or str(error)) from None
            if count == 0:
                raise self._failed(shard, f"it ends at byte {start + done}, earlier than when it was opened")
            done += count

    def unchanged(self) -> None:
        """Raises InputError if a shard was written to since it was opened."""
        for shard, descriptor in self._files.items():
            if _stamp(descriptor) != self._stamps[shard]:
                raise InputError(
                    f"{shard} was changed while it was converted",
                    where=self.source.folder / shard,
                    next="wait until the download is complete, then convert again",
                )

    def _open(self, shard: str) -> int:
        with self._opening:
            if shard not in self._files:
                try:
                    descriptor = os.open(self.source.folder / shard, os.O_RDONLY)
                except OSError as error:
                    raise self._failed(shard, error.strerror or str(error)) from None
                self._files[shard] = descriptor
                self._stamps[shard] = _stamp(descriptor)
                if self._stamps[shard][0] != self.source.shards[shard].size:
                    raise self._failed(shard, "its size has changed since its header was read")
            return self._files[shard]

    def _failed(self, shard: str, why: str) -> MachineError:
        return MachineError(
            f"{shard} can't be read: {why}",
            where=self.source.folder / shard,
            next="check the disk and the file, then run the same command with --resume",
        )


def _stamp(descriptor: int) -> tuple[int, int]:
    facts = os.fstat(descriptor)
    return facts.st_size, facts.st_mtime_ns
