"""A file plan cut into pieces of bounded size: what to read, and which target bytes come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.check import check_bytes
from dsv4_mlx.checkpoint.files import PAGE
from dsv4_mlx.checkpoint.inventory import FP8_BLOCK, Weight
from dsv4_mlx.checkpoint.manifest import SEGMENT_SOURCE
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.convert.codec import affine4, expanded_scales, values
from dsv4_mlx.convert.conversion_plan import ExpertRecords, FilePlan, TargetTensor

Bytes = npt.NDArray[np.uint8]
FLOATS = 4  # a step quantises so many times fewer bytes than a block has


@dataclass(frozen=True)
class OutputSlice:
    """Finished bytes for one place of the file. `digests` cuts them up: (key, first, last) for hashing."""

    offset: int
    data: memoryview
    digests: tuple[tuple[str, int, int], ...]


class ConversionStep(Protocol):
    """One step: reads at most a block, returns the target bytes that follow from it.

    `own_digest`: no other step shares a digest with it.
    """

    @property
    def own_digest(self) -> bool: ...

    def run(self, reader: SourceReader, buffer: memoryview) -> list[OutputSlice]: ...


class Span(Protocol):
    """Neighbouring target bytes that belong to one digest, `key`."""

    @property
    def key(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    def fill(self, reader: SourceReader, into: memoryview) -> None:
        """Make them."""

    def cut(self, at: int) -> tuple[Span, Span]:
        """Two that follow each other, the first `at` bytes long."""


@dataclass(frozen=True)
class CopiedSpan:
    """Bytes of a tensor as they are stored, from byte `start` of the shard on."""

    key: str
    bytes: int
    tensor: str
    shard: str
    start: int

    def fill(self, reader: SourceReader, into: memoryview) -> None:
        reader.read(self.shard, self.start, into)
        check_bytes(reader.source, self.tensor, into)

    def cut(self, at: int) -> tuple[CopiedSpan, CopiedSpan]:
        return replace(self, bytes=at), replace(self, bytes=self.bytes - at, start=self.start + at)


@dataclass(frozen=True)
class ScalesSpan:
    """The expanded scales of an FP8 matrix, from byte `skip` on."""

    key: str
    bytes: int
    weight: Weight
    skip: int = 0

    def fill(self, reader: SourceReader, into: memoryview) -> None:
        whole = expanded_scales(reader, self.weight, 0, self.weight.shape[0]).reshape(-1)
        np.copyto(np.frombuffer(into, np.uint8), whole[self.skip : self.skip + self.bytes])

    def cut(self, at: int) -> tuple[ScalesSpan, ScalesSpan]:
        return replace(self, bytes=at), replace(self, bytes=self.bytes - at, skip=self.skip + at)


@dataclass(frozen=True)
class ZeroSpan:
    """Padding."""

    key: str
    bytes: int

    def fill(self, reader: SourceReader, into: memoryview) -> None:
        into[:] = bytes(self.bytes)

    def cut(self, at: int) -> tuple[ZeroSpan, ZeroSpan]:
        return ZeroSpan(self.key, at), ZeroSpan(self.key, self.bytes - at)


@dataclass(frozen=True)
class CopyStep:
    """Spans that follow one another in the target from `offset` on."""

    offset: int
    spans: tuple[Span, ...]
    own_digest: bool = False

    def run(self, reader: SourceReader, buffer: memoryview) -> list[OutputSlice]:
        at = 0
        digests: list[tuple[str, int, int]] = []
        for span in self.spans:
            span.fill(reader, buffer[at : at + span.bytes])
            if digests and digests[-1][0] == span.key:
                digests[-1] = (span.key, digests[-1][1], at + span.bytes)
            else:
                digests.append((span.key, at, at + span.bytes))
            at += span.bytes
        return [OutputSlice(self.offset, buffer[:at], tuple(digests))]


@dataclass(frozen=True)
class RowsStep:
    """Rows `first` to `last` of an FP8 or BF16 matrix that is not copied: scales expanded, or quantised."""

    target: TargetTensor
    first: int
    last: int
    own_digest: bool = False

    def run(self, reader: SourceReader, buffer: memoryview) -> list[OutputSlice]:
        weight = self.target.weight
        if self.target.format == "mxfp8":
            parts = {"scales": expanded_scales(reader, weight, self.first, self.last).reshape(-1)}
        else:
            floats = values(reader, weight, self.first, self.last)
            parts = dict(zip(("weight", "scales", "biases"), affine4(floats), strict=True))
        return self.slices(parts, buffer)

    def slices(self, parts: dict[str, Bytes], buffer: memoryview) -> list[OutputSlice]:
        """The parts' places in the file. They move to the buffer if they fit: it lies on a page boundary."""
        found: list[OutputSlice] = []
        at = 0
        for part, data in parts.items():
            view = data.data
            if at + data.size <= len(buffer):
                view = buffer[at : at + data.size]
                np.copyto(np.frombuffer(view, np.uint8), data)
                at += -(-data.size // PAGE) * PAGE
            placed = self.target.parts[part]
            offset = placed.offset + self.first * (placed.bytes // placed.shape[0])
            found.append(OutputSlice(offset, view, ((placed.key, 0, data.size),)))
        return found


@dataclass(frozen=True)
class QuantisedRecord:
    """One expert, quantised `step` rows at a time. A record larger than the buffer has memory of its own."""

    records: ExpertRecords
    number: int
    step: int
    own_digest: bool = True

    def run(self, reader: SourceReader, buffer: memoryview) -> list[OutputSlice]:
        size = self.records.record_bytes
        view = buffer[:size] if size <= len(buffer) else memoryview(bytearray(size))
        record = np.frombuffer(view, np.uint8)
        used = self.records.segments[-1].offset + self.records.segments[-1].bytes
        record[used:] = 0
        for name, weight in zip(("gate", "up", "down"), self.records.experts[self.number], strict=True):
            segments = [s for s in self.records.segments if s.name.startswith(f"{name}_")]
            for first in range(0, weight.shape[0], self.step):
                last = min(first + self.step, weight.shape[0])
                parts = affine4(values(reader, weight, first, last))
                for segment, part in zip(segments, parts, strict=True):
                    at = segment.offset + first * (segment.bytes // segment.shape[0])
                    record[at : at + part.size] = part
        offset = self.records.offset + self.number * size
        return [OutputSlice(offset, view, ((str(self.number), 0, size),))]


def steps_for(file: FilePlan, source: Source, block: int) -> Iterator[ConversionStep]:
    """The steps that make `file`, in order; each reads and yields about `block` bytes at most.

    A step never goes below 128 rows of a matrix, the rows that share an FP8 scale, nor a quantised record
    below the whole record.
    """
    if file.records is not None:
        if file.records.format == "affine4":
            yield from _quantised_records(file.records, block)
        else:
            yield from _record_copies(file.records, source, block)
    for target in file.targets:
        if target.format != "affine4":
            placed = target.parts["weight"]
            whole = _same(source, target.weight.name, placed.key)
            yield from _copies(placed.offset, iter((whole,)), block)
        if target.format != "raw":
            yield from _rows(target, block)


def quantised_at_once(columns: int, block: int) -> int:
    """How many rows of so many columns a step quantises. In float32, of which several copies live at once: a
    part of a block keeps them small beside the buffers."""
    return max(1, block // (columns * 4 * FLOATS) // FP8_BLOCK) * FP8_BLOCK


def _rows(target: TargetTensor, block: int) -> Iterator[ConversionStep]:
    rows, columns = target.weight.shape
    if target.format == "affine4":
        step = quantised_at_once(columns, block)
    else:  # expanded scales are a 32nd of the codes
        step = max(1, block // max(1, columns // 32) // FP8_BLOCK) * FP8_BLOCK
    for first in range(0, rows, step):
        yield RowsStep(target, first, min(first + step, rows))


def _quantised_records(records: ExpertRecords, block: int) -> Iterator[ConversionStep]:
    columns = max(weight.shape[1] for weight in records.experts[0])
    for number in range(len(records.experts)):
        yield QuantisedRecord(records, number, quantised_at_once(columns, block))


def _record_copies(records: ExpertRecords, source: Source, block: int) -> Iterator[ConversionStep]:
    """Whole records, as many as a block holds; a record larger than a block is cut."""
    together = block // records.record_bytes
    for first in range(0, len(records.experts), max(1, together)):
        offset = records.offset + first * records.record_bytes
        last = min(first + max(1, together), len(records.experts))
        spans = [s for number in range(first, last) for s in _record(records, number, source)]
        if together:
            yield CopyStep(offset, tuple(spans), own_digest=True)
        else:
            yield from _copies(offset, iter(spans), block)


def _record(records: ExpertRecords, number: int, source: Source) -> Iterator[Span]:
    key = str(number)
    for segment in records.segments:
        matrix, part = SEGMENT_SOURCE[segment.name]
        weight = records.experts[number][matrix]
        if part and weight.form == "fp8":
            yield ScalesSpan(key, segment.bytes, weight)
        else:
            yield _same(source, weight.tensors()[part].name, key)
    padding = records.record_bytes - sum(segment.bytes for segment in records.segments)
    if padding:
        yield ZeroSpan(key, padding)


def _same(source: Source, tensor: str, key: str) -> CopiedSpan:
    entry = source.entry(tensor)
    return CopiedSpan(key, entry.end - entry.start, tensor, source.where[tensor], entry.start)


def _copies(offset: int, spans: Iterator[Span], block: int) -> Iterator[ConversionStep]:
    """Pack consecutive spans into copies of at most `block` bytes, cutting where needed."""
    held: list[Span] = []
    size = 0
    for span in spans:
        while size + span.bytes > block:
            head, span = span.cut(block - size)
            yield CopyStep(offset, (*held, head) if head.bytes else tuple(held))
            offset += block
            held, size = [], 0
        if span.bytes:
            held.append(span)
            size += span.bytes
    if held:
        yield CopyStep(offset, tuple(held))
