"""One converted weight or expert record against its digests and, if given, its official original.

What "the same" means, by format:

    raw      the same bytes.
    mxfp4    the same bytes of codes and of scales.
    mxfp8    the same bytes of codes; and the scale of row r, columns 32g.. is the official scale of the block
             that holds them, (r / 128, 32g / 128). Equal codes under equal scales are equal values.
    affine4  nothing is the same: the error is measured, in float32, over all values.

Those of an expert are cut out of its record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.inventory import FP8_BLOCK, Weight
from dsv4_mlx.checkpoint.manifest import MX_GROUP, SEGMENT_SOURCE
from dsv4_mlx.checkpoint.reader import FolderReader, SourceReader
from dsv4_mlx.convert.codec import decode_affine4, decode_bf16, scale_rows, values
from dsv4_mlx.convert.conversion_plan import ExpertRecords, PlacedPart, TargetTensor
from dsv4_mlx.convert.steps import quantised_at_once

Bytes = npt.NDArray[np.uint8]

# Said after the digest was found right: either it was made anew, or the source is not what it was.
CHANGED = "differs from the official tensor: the model or the source has changed since the conversion"


@dataclass(frozen=True)
class Damage:
    """Something that is not as it should be. `tensor` is a weight's name, an expert's prefix, or empty."""

    file: str
    tensor: str
    what: str


@dataclass
class Deviation:
    """Sums over the values of one weight, official w against converted v."""

    squares: float = 0.0  # of w
    errors: float = 0.0  # of (v - w)^2
    largest: float = 0.0  # |w|
    worst: float = 0.0  # |v - w|

    def add(self, official: npt.NDArray[np.float32], converted: npt.NDArray[np.float32]) -> None:
        difference = np.abs(converted - official)
        self.squares += float(np.square(official, dtype=np.float64).sum())
        self.errors += float(np.square(difference, dtype=np.float64).sum())
        self.largest = max(self.largest, float(np.abs(official).max()))
        self.worst = max(self.worst, float(difference.max()))

    @property
    def relative(self) -> float:
        """Root of the summed squared errors over the root of the summed squares."""
        return math.sqrt(self.errors / self.squares) if self.squares else 0.0

    @property
    def relative_worst(self) -> float:
        """Largest error over largest value."""
        return self.worst / self.largest if self.largest else 0.0


class Comparison:
    """Checks of one model's weights; thread-safe, since it only reads."""

    def __init__(self, model: FolderReader, source: SourceReader | None, block: int) -> None:
        self.model = model
        self.source = source
        self.block = block

    def weight(
        self, file: str, target: TargetTensor, digests: dict[str, str]
    ) -> tuple[list[Damage], Deviation]:
        """Check a weight outside the experts; `digests` are those of the manifest, by part."""
        deviation = Deviation()
        name = target.weight.name
        for part, placed in target.parts.items():
            if self.digest(file, placed) != digests[part]:
                return [Damage(file, name, f"the {part} are not the bytes that were written")], deviation
        if self.source is not None:
            if target.format == "affine4":
                self.measure(file, target, self.source, deviation)
            elif not self.same(file, target, self.source):
                return [Damage(file, name, f"{name} {CHANGED}")], deviation
        return [], deviation

    def record(
        self, file: str, records: ExpertRecords, expert: int, digest: str
    ) -> tuple[list[Damage], dict[str, Deviation]]:
        """Check one expert's record; how far off its weights are, by name."""
        name = f"{records.prefix}.ffn.experts.{expert}"
        record = self.stored(file, records.offset + expert * records.record_bytes, records.record_bytes)
        if hashlib.sha256(record.data).hexdigest() != digest:
            return [Damage(file, name, "the record is not the bytes that were written")], {}
        if self.source is None:
            return [], {}
        if records.format == "affine4":
            return [], self.measure_record(record, records, expert, self.source)
        for segment in records.segments:
            matrix, part = SEGMENT_SOURCE[segment.name]
            weight = records.experts[expert][matrix]
            tensor = weight.tensors()[part].name
            stored = record[segment.offset : segment.offset + segment.bytes]
            if part and weight.form == "fp8":
                same = self.same_scales(stored.reshape(segment.shape), weight, self.source)
            else:
                same = np.array_equal(self.official(self.source, tensor, 0, segment.bytes), stored)
            if not same:
                return [Damage(file, name, f"{tensor} {CHANGED}")], {}
        return [], {}

    def digest(self, file: str, placed: PlacedPart) -> str:
        digest = hashlib.sha256()
        for start, count in self.blocks(placed.bytes):
            digest.update(self.stored(file, placed.offset + start, count).data)
        return digest.hexdigest()

    def same(self, file: str, target: TargetTensor, source: SourceReader) -> bool:
        """Whether a raw or mxfp8 weight has the official values."""
        codes = target.parts["weight"]
        for start, count in self.blocks(codes.bytes):
            stored = self.stored(file, codes.offset + start, count)
            if not np.array_equal(stored, self.official(source, target.weight.name, start, count)):
                return False
        if target.format == "raw":
            return True
        scales = target.parts["scales"]
        stored = self.stored(file, scales.offset, scales.bytes).reshape(scales.shape)
        return self.same_scales(stored, target.weight, source)

    def same_scales(self, stored: Bytes, weight: Weight, source: SourceReader) -> bool:
        """Whether scales [rows, groups] are those of the official blocks."""
        rows, groups = stored.shape
        row, group = np.arange(rows) // FP8_BLOCK, np.arange(groups) * MX_GROUP // FP8_BLOCK
        return bool(np.array_equal(stored, scale_rows(source, weight, 0, rows)[np.ix_(row, group)]))

    def measure(self, file: str, target: TargetTensor, source: SourceReader, deviation: Deviation) -> None:
        """Add up the error of an affine4 weight, a block of rows at a time."""
        rows, columns = target.weight.shape
        step = quantised_at_once(columns, self.block)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            stored = [
                self.rows(file, target.parts[part], first, last) for part in ("weight", "scales", "biases")
            ]
            deviation.add(values(source, target.weight, first, last), _decoded(*stored))

    def measure_record(
        self, record: Bytes, records: ExpertRecords, expert: int, source: SourceReader
    ) -> dict[str, Deviation]:
        """The error of an expert in affine4, by weight."""
        found: dict[str, Deviation] = {}
        for name, weight in zip(("gate", "up", "down"), records.experts[expert], strict=True):
            parts = [
                record[s.offset : s.offset + s.bytes].reshape(s.shape[0], -1)
                for s in records.segments
                if s.name.startswith(f"{name}_")
            ]
            deviation = found[weight.name] = Deviation()
            step = quantised_at_once(weight.shape[1], self.block)
            for first in range(0, weight.shape[0], step):
                last = min(first + step, weight.shape[0])
                stored = _decoded(*(part[first:last] for part in parts))
                deviation.add(values(source, weight, first, last), stored)
        return found

    def rows(self, file: str, placed: PlacedPart, first: int, last: int) -> Bytes:
        width = placed.bytes // placed.shape[0]
        return self.stored(file, placed.offset + first * width, (last - first) * width).reshape(-1, width)

    def official(self, source: SourceReader, tensor: str, start: int, count: int) -> Bytes:
        data = np.empty(count, dtype=np.uint8)
        source.read(source.source.where[tensor], source.source.entry(tensor).start + start, data.data)
        return data

    def stored(self, file: str, start: int, count: int) -> Bytes:
        data = np.empty(count, dtype=np.uint8)
        self.model.read(file, start, data.data)
        return data

    def blocks(self, count: int) -> Iterator[tuple[int, int]]:
        for start in range(0, count, self.block):
            yield start, min(self.block, count - start)


def _decoded(codes: Bytes, scales: Bytes, biases: Bytes) -> npt.NDArray[np.float32]:
    """Rows of an affine4 matrix, bytes as stored -> values."""
    return decode_affine4(
        codes.view(np.uint32), decode_bf16(scales.view(np.uint16)), decode_bf16(biases.view(np.uint16))
    )
