"""Exact reads from one folder's files, safe to share between threads."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from dsv4_mlx.checkpoint.files import InFile
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.errors import InputError, MachineError


class FolderReader:
    """Files of a folder, opened when first read. Use as a context manager. `advice` ends its errors."""

    def __init__(self, folder: Path, advice: str = "check the disk and the file") -> None:
        self.folder, self.advice = folder, advice
        self._files: dict[str, InFile] = {}
        self._opening = threading.Lock()

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, file: str, start: int, into: memoryview) -> None:
        """Fill `into` from the file's byte `start` on. Raises MachineError."""
        try:
            self.opened(file).read(start, into)
        except (OSError, EOFError) as error:
            raise self.failed(file, getattr(error, "strerror", None) or str(error)) from None

    def opened(self, file: str) -> InFile:
        with self._opening:
            if file not in self._files:
                self._files[file] = InFile(self.folder / file)
            return self._files[file]

    def failed(self, file: str, why: str) -> MachineError:
        return MachineError(
            f"{file} can't be read: {why}",
            where=self.folder / file,
            next=self.advice,
        )


class SourceReader(FolderReader):
    """The shards of an official checkpoint."""

    def __init__(self, source: Source, advice: str = "check the disk and the file") -> None:
        super().__init__(source.folder, advice)
        self.source = source
        self._stamps: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> SourceReader:
        return self

    def opened(self, file: str) -> InFile:
        found = super().opened(file)
        if self._stamps.setdefault(file, found.stamp())[0] != self.source.shards[file].size:
            raise self.failed(file, "its size has changed since its header was read")
        return found

    def cancel(self) -> None:
        """Nothing more is wanted: whoever waits in `read` may give up."""

    def unchanged(self) -> None:
        """Raises InputError if a shard was written to since it was opened."""
        for shard, file in self._files.items():
            if file.stamp() != self._stamps[shard]:
                raise InputError(
                    f"{shard} was changed while it was read",
                    where=self.folder / shard,
                    next="wait until the download is complete, then try again",
                )
