"""Where the records of a block's routed experts lie on disk. Pure data: reading them is paging's matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from dsv4_mlx.checkpoint.check import Bytes, check_codes, expand_scales, exponents
from dsv4_mlx.checkpoint.inventory import FP8_BLOCK, ITEM_BYTES
from dsv4_mlx.checkpoint.manifest import MX_GROUP, REPAIR, ExpertTable, Segment
from dsv4_mlx.errors import InputError
from dsv4_mlx.model.tensors import ExpertProduct, ExpertSource

# (block, its records) -> experts that are read when they are needed, in place of all of them in memory
Paged = Callable[[str, "RecordMap", ExpertProduct], ExpertSource]

HEADER_LENGTH = 8  # bytes at the start of a safetensors file that say how long its header is


@dataclass(frozen=True)
class Range:
    """`bytes` bytes of file number `file`, from `offset` on; they belong at byte `at` of the record."""

    file: int
    offset: int
    bytes: int
    at: int


@dataclass(frozen=True)
class RecordMap:
    """The records of one block: `layout` says what is where in a record, `ranges[e]` where its bytes are.

    `files` are the paths that Range.file counts; `sizes` what each must be long. An expert's ranges are in
    the order of the disk and none overlap. Bytes of a record that no range fills are padding.
    `layout.digests` may be empty: then reads can't be verified. A value: no method changes it, and what they
    return holds as long as the files do. `finish` alone writes, to the memory it is given.
    """

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    layout: ExpertTable
    ranges: tuple[tuple[Range, ...], ...]

    def finish(self, expert: int, record: memoryview) -> None:
        """Make the expert's record, in place, of the bytes of its ranges. Here they are one already."""

    @property
    def count(self) -> int:
        return len(self.ranges)

    @property
    def record_bytes(self) -> int:
        """Bytes of a record in memory, padding included."""
        return self.layout.record_bytes

    @property
    def read_bytes(self) -> int:
        """Bytes read for one expert."""
        return sum(part.bytes for part in self.ranges[0])

    def slots(self, count: int) -> ExpertTable:
        """The layout of a bank of `count` slots."""
        return replace(self.layout, count=count, digests=())

    def disk_order(self, experts: Sequence[int]) -> list[int]:
        """`experts` as they lie on disk."""
        return sorted(experts, key=lambda e: (self.ranges[e][0].file, self.ranges[e][0].offset))


@dataclass(frozen=True)
class OfficialRecordMap(RecordMap):
    """Records of an official checkpoint, whose scales no converter has looked at or repeated.

    Scales of blocks are read to where the repeated ones begin. `scales_dtype`: how they are stored.
    """

    scales_dtype: str

    def finish(self, expert: int, record: memoryview) -> None:
        """Check codes and scales, and repeat the scales of blocks.

        Raises InputError if they can't be computed with: a scale that is no power of two, a code that is no
        number.
        """
        blocks = self.layout.format == "mxfp8"  # a scale covers 128 rows and columns
        for segment in self.layout.segments:
            place = np.frombuffer(record, np.uint8, segment.bytes, segment.offset)
            try:
                if segment.dtype == "U8" and blocks:
                    read = place[: math.prod(_grid(segment)) * ITEM_BYTES[self.scales_dtype]]
                    repeat_scales(exponents(read, self.scales_dtype), segment, record)
                elif segment.dtype == "U8":
                    exponents(place, self.scales_dtype)
                elif blocks:
                    check_codes(place)
            except ValueError as error:
                raise InputError(
                    f"{segment.name} of expert {expert} hold {error}",
                    where=self.files[self.ranges[expert][0].file],
                    next="download this file again",
                ) from None


def converted_records(folder: Path, table: ExpertTable, size: int) -> RecordMap:
    """One range per expert. `size`: bytes of the file, whose only tensor ends it. Raises InputError."""
    path = folder / table.file
    start = size - table.count * table.record_bytes
    if start < HEADER_LENGTH:
        raise InputError(
            f"the file has {size} bytes, too few for {table.count} experts of {table.record_bytes}",
            where=path,
            next=REPAIR,
        )
    ranges = [(Range(0, start + e * table.record_bytes, table.record_bytes, 0),) for e in range(table.count)]
    return RecordMap((path,), (size,), table, tuple(ranges))


def repeat_scales(scales: Bytes, segment: Segment, record: memoryview) -> None:
    """Write the scales of blocks, E8M0, to a segment of a record: one for each row and 32 columns."""
    place = np.frombuffer(record, np.uint8, segment.bytes, segment.offset)
    rows, columns = segment.shape[0], segment.shape[1] * MX_GROUP
    place[:] = expand_scales(scales.reshape(_grid(segment)), rows, columns).reshape(-1)


def _grid(segment: Segment) -> tuple[int, int]:
    """How many blocks the scales of a segment come from, down and across."""
    rows, columns = segment.shape[0], segment.shape[1] * MX_GROUP
    return -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)


def joined(ranges: Sequence[Range]) -> list[list[Range]]:
    """Ranges in the order of the disk, those that follow each other without a gap in one list."""
    ordered = sorted(ranges, key=lambda part: (part.file, part.offset))
    runs = [[ordered[0]]] if ordered else []
    for before, after in pairwise(ordered):
        if after.file == before.file and after.offset == before.offset + before.bytes:
            runs[-1].append(after)
        else:
            runs.append([after])
    return runs
