"""A checkpoint before its shards are here: their headers and the samples that make its identity.

Both are small reads, a few hundred kilobytes a shard; they are kept beside the shards, so that a run that
goes on needs no network for them, and shards may be deleted once they are converted.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.header import LARGEST_HEADER, Header, parse_header
from dsv4_mlx.checkpoint.identity import PIECE, SAMPLES, STATE, identify, sample_points
from dsv4_mlx.checkpoint.source import INDEX, OPTIONAL, REQUIRED, Source, outline
from dsv4_mlx.errors import InputError, Progress
from dsv4_mlx.hub.fetch import Fetcher
from dsv4_mlx.hub.ranges import write
from dsv4_mlx.hub.remote import Remote

FIRST = 1 << 18  # bytes of a header's first read: enough for most
AT_ONCE = 8  # small reads beside each other


def texts(fetcher: Fetcher) -> None:
    """Fetch the small files. Raises InputError for a repository that lacks one, MachineError."""
    for name in (*REQUIRED, INDEX):
        fetcher.fetch(name)
    for name in OPTIONAL:
        if name in fetcher.remote.files:
            fetcher.fetch(name)


class RemoteCheckpoint:
    """The checkpoint that `folder` will hold; its small files are there already."""

    def __init__(self, remote: Remote, folder: Path, progress: Progress | None = None) -> None:
        """Raises InputError, MachineError."""
        self.remote, self.folder = remote, folder
        names = sorted(name for name in remote.files if name.endswith(".safetensors"))
        done = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for _ in pool.map(self._samples, names):
                    done += 1
                    if progress is not None:
                        progress(done, len(names))
            except BaseException:
                remote.stop.set()  # the pool waits for its threads
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self.source: Source = outline(folder, self._header)

    @property
    def facts(self) -> dict[str, Any]:
        """As checkpoint.identity.identify of the finished folder."""
        return identify(self.source, lambda name, header: self._pieces(name, header))

    def _header(self, name: str) -> Header:
        if name not in self.remote.files:
            raise InputError(
                f"{self.remote.repository} lists {name} in its index and has no such file",
                next="use a complete checkpoint's repository",
            )
        return parse_header(self.folder / name, self._start(name), self.remote.files[name].bytes)

    def _start(self, name: str) -> bytes:
        """A shard's header as stored, its length included."""
        kept = self.folder / STATE / f"{name}.header"
        known = kept.read_bytes() if kept.is_file() else b""
        if len(known) >= 8 and len(known) == 8 + int.from_bytes(known[:8], "little"):
            return known
        size = self.remote.files[name].bytes
        if size < 8:
            raise InputError(f"{name} has {size} bytes, too few for a header", next="use another revision")
        start = self.remote.read(name, 0, min(FIRST, size))
        length = 8 + int.from_bytes(start[:8], "little")
        if length > min(size, LARGEST_HEADER):
            raise InputError(f"{name}: its header says it is {length} bytes long, the file has {size}")
        if length > len(start):
            start += self.remote.read(name, len(start), length - len(start))
        write(kept, start[:length])
        return start[:length]

    def _samples(self, name: str) -> bytes:
        kept = self.folder / STATE / f"{name}.sample"
        size, start = self.remote.files[name].bytes, len(self._start(name))
        if kept.is_file() and kept.stat().st_size == min(size - start, SAMPLES * PIECE):
            return kept.read_bytes()
        if size - start <= SAMPLES * PIECE:  # read whole
            found = self.remote.read(name, start, size - start) if size > start else b""
        else:
            points = sample_points(start, size)
            found = b"".join(self.remote.read(name, at, PIECE) for at in points)
        write(kept, found)
        return found

    def _pieces(self, name: str, header: Header) -> Iterator[bytes]:
        yield self._samples(name)
