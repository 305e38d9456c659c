"""A file plan cut into pieces of bounded size: what to read, and which target bytes come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.check import check_bytes
from dsv4_mlx.checkpoint.direct import PAGE
from dsv4_mlx.checkpoint.native import SEGMENT_SOURCE, expand_scales
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.convert.encode import affine4, decode_bf16, decode_fp8
from dsv4_mlx.convert.plan import FilePlan, Records, Target
from dsv4_mlx.official import FP8_BLOCK

Bytes = npt.NDArray[np.uint8]
FLOATS = 4  # a step quantises so many times fewer bytes than a block has


@dataclass(frozen=True)
class Piece:
    """Finished bytes for one place of the file. `digests` cuts them up: (key, first, last) for hashing."""

    offset: int
    data: memoryview
    digests: tuple[tuple[str, int, int], ...]


class Work(Protocol):
    """One step: reads at most a block, returns the target bytes that follow from it.

    `alone` says that no other step shares a digest with it.
    """

    @property
    def alone(self) -> bool: ...

    def run(self, reader: SourceReader, buffer: memoryview) -> list[Piece]: ...


@dataclass(frozen=True)
class Stretch:
    """Target bytes that equal source bytes; without a tensor, zeros. `key` is the digest they belong to."""

    key: str
    bytes: int
    tensor: str = ""
    shard: str = ""
    start: int = 0

    def cut(self, at: int) -> tuple[Stretch, Stretch]:
        rest = Stretch(self.key, self.bytes - at, self.tensor, self.shard, self.start + at)
        return Stretch(self.key, at, self.tensor, self.shard, self.start), rest


@dataclass(frozen=True)
class Copy:
    """Stretches that follow one another in the target from `offset` on."""

    offset: int
    stretches: tuple[Stretch, ...]
    alone: bool = False

    def run(self, reader: SourceReader, buffer: memoryview) -> list[Piece]:
        at = 0
        digests: list[tuple[str, int, int]] = []
        for stretch in self.stretches:
            view = buffer[at : at + stretch.bytes]
            if stretch.tensor:
                reader.read(stretch.shard, stretch.start, view)
                check_bytes(reader.source, stretch.tensor, view)
            else:
                view[:] = bytes(stretch.bytes)
            if digests and digests[-1][0] == stretch.key:
                digests[-1] = (stretch.key, digests[-1][1], at + stretch.bytes)
            else:
                digests.append((stretch.key, at, at + stretch.bytes))
            at += stretch.bytes
        return [Piece(self.offset, buffer[:at], tuple(digests))]


@dataclass(frozen=True)
class Rows:
    """Rows `first` to `last` of an FP8 or BF16 matrix that is not copied: scales expanded, or quantised."""

    target: Target
    first: int
    last: int
    alone: bool = False

    def run(self, reader: SourceReader, buffer: memoryview) -> list[Piece]:
        if self.target.format == "mxfp8":
            rows, columns = self.last - self.first, self.target.weight.shape[1]
            parts = {"scales": expand_scales(self.scales(reader), rows, columns).reshape(-1)}
        else:
            parts = dict(zip(("weight", "scales", "biases"), affine4(self.values(reader)), strict=True))
        return self.pieces(parts, buffer)

    def values(self, reader: SourceReader) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]."""
        weight = self.target.weight
        raw = self.source_rows(reader, weight.name, self.first, self.last)
        if weight.form == "fp8":
            return decode_fp8(raw, self.scales(reader))
        return decode_bf16(raw.view(np.uint16))

    def scales(self, reader: SourceReader) -> Bytes:
        """The official scales of these rows; `first` is a multiple of FP8_BLOCK."""
        first, last = self.first // FP8_BLOCK, -(-self.last // FP8_BLOCK)
        return self.source_rows(reader, self.target.weight.scale_name, first, last)

    def source_rows(self, reader: SourceReader, tensor: str, first: int, last: int) -> Bytes:
        entry = reader.source.entry(tensor)
        width = (entry.end - entry.start) // entry.shape[0]
        raw = np.empty((last - first, width), dtype=np.uint8)
        view = raw.data.cast("B")
        reader.read(reader.source.where[tensor], entry.start + first * width, view)
        check_bytes(reader.source, tensor, view)
        return raw

    def pieces(self, parts: dict[str, Bytes], buffer: memoryview) -> list[Piece]:
        """The parts' places in the file. They move to the buffer if they fit: it lies on a page boundary."""
        found: list[Piece] = []
        at = 0
        for part, data in parts.items():
            view = data.data
            if at + data.size <= len(buffer):
                view = buffer[at : at + data.size]
                np.copyto(np.frombuffer(view, np.uint8), data)
                at += -(-data.size // PAGE) * PAGE
            placed = self.target.parts[part]
            offset = placed.offset + self.first * (placed.bytes // placed.shape[0])
            found.append(Piece(offset, view, ((placed.key, 0, data.size),)))
        return found


def work_for(file: FilePlan, source: Source, block: int) -> Iterator[Work]:
    """The steps that make `file`, in order; each reads and yields about `block` bytes at most.

    A step never goes below 128 rows of a matrix, the rows that share an FP8 scale.
    """
    if file.records is not None:
        yield from _record_copies(file.records, source, block)
    for target in file.targets:
        if target.format != "affine4":
            placed = target.parts["weight"]
            whole = _stretch(source, target.weight.name, placed.key)
            yield from _copies(placed.offset, iter((whole,)), block)
        if target.format != "raw":
            yield from _rows(target, block)


def _rows(target: Target, block: int) -> Iterator[Work]:
    rows, columns = target.weight.shape
    # Quantised in float32, of which several copies live at once: a part of a block keeps them small beside
    # the buffers. Expanded scales are a 32nd of the codes.
    width = columns * 4 * FLOATS if target.format == "affine4" else max(1, columns // 32)
    step = max(1, block // width // FP8_BLOCK) * FP8_BLOCK
    for first in range(0, rows, step):
        yield Rows(target, first, min(first + step, rows))


def _record_copies(records: Records, source: Source, block: int) -> Iterator[Work]:
    """Whole records, as many as a block holds; a record larger than a block is cut."""
    together = block // records.record_bytes
    for first in range(0, len(records.experts), max(1, together)):
        offset = records.offset + first * records.record_bytes
        last = min(first + max(1, together), len(records.experts))
        stretches = [s for number in range(first, last) for s in _record(records, number, source)]
        if together:
            yield Copy(offset, tuple(stretches), alone=True)
        else:
            yield from _copies(offset, iter(stretches), block)


def _record(records: Records, number: int, source: Source) -> Iterator[Stretch]:
    for segment in records.segments:
        matrix, part = SEGMENT_SOURCE[segment.name]
        yield _stretch(source, records.experts[number][matrix].tensors()[part].name, str(number))
    padding = records.record_bytes - sum(segment.bytes for segment in records.segments)
    if padding:
        yield Stretch(str(number), padding)


def _stretch(source: Source, tensor: str, key: str) -> Stretch:
    entry = source.entry(tensor)
    return Stretch(key, entry.end - entry.start, tensor, source.where[tensor], entry.start)


def _copies(offset: int, stretches: Iterator[Stretch], block: int) -> Iterator[Work]:
    """Pack consecutive stretches into copies of at most `block` bytes, cutting where needed."""
    held: list[Stretch] = []
    size = 0
    for stretch in stretches:
        while size + stretch.bytes > block:
            head, stretch = stretch.cut(block - size)
            yield Copy(offset, (*held, head) if head.bytes else tuple(held))
            offset += block
            held, size = [], 0
        if stretch.bytes:
            held.append(stretch)
            size += stretch.bytes
    if held:
        yield Copy(offset, tuple(held))
