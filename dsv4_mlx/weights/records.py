"""Where the records of a block's routed experts lie on disk. Pure data: reading them is paging's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from dsv4_mlx.errors import InputError
from dsv4_mlx.manifest import ExpertTable
from dsv4_mlx.model.tensors import ExpertSource

# (block, its records) -> experts that are read when they are needed, in place of all of them in memory
Paged = Callable[[str, "RecordMap"], ExpertSource]

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
    `layout.digests` may be empty: then reads can't be verified. Bytes that are not `checked` no converter
    has looked at: a record must pass `check_scales` before it is used.
    """

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    layout: ExpertTable
    ranges: tuple[tuple[Range, ...], ...]
    checked: bool = True

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


def converted_records(folder: Path, table: ExpertTable, size: int) -> RecordMap:
    """One range per expert. `size`: bytes of the file, whose only tensor ends it. Raises InputError."""
    path = folder / table.file
    start = size - table.count * table.record_bytes
    if start < HEADER_LENGTH:
        raise InputError(
            f"the file has {size} bytes, too few for {table.count} experts of {table.record_bytes}",
            where=path,
            next="convert the official checkpoint again",
        )
    ranges = [(Range(0, start + e * table.record_bytes, table.record_bytes, 0),) for e in range(table.count)]
    return RecordMap((path,), (size,), table, tuple(ranges))


def check_scales(records: RecordMap, expert: int, record: memoryview) -> None:
    """Raises InputError if a scale of the record is byte 255: NaN by the standard, infinity in MLX."""
    for segment in records.layout.segments:
        scales = np.frombuffer(record, np.uint8, segment.bytes, segment.offset)
        if segment.dtype == "U8" and int(scales.max()) == 255:
            raise InputError(
                f"{segment.name} of expert {expert} hold the scale byte 255, which is not a number",
                where=records.files[records.ranges[expert][0].file],
                next="download this file again",
            )


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
