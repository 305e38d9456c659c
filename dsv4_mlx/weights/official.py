"""An official checkpoint as downloaded, read into the arrays that recipe `native` would have stored.

Nothing is written. Dense FP8 is given one scale per row and 32 columns, an expert's six ranges become one
record; every byte is checked as the converter checks it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import numpy as np

import dsv4_mlx
from dsv4_mlx.checkpoint.check import check_bytes, expand_scales, scale_bytes
from dsv4_mlx.checkpoint.identity import identify
from dsv4_mlx.checkpoint.inventory import BlockTensors, Inventory, Weight
from dsv4_mlx.checkpoint.manifest import (
    NATIVE,
    OFFICIAL,
    SEGMENT_SOURCE,
    ExpertTable,
    Manifest,
    ManifestTensor,
    record_bytes,
    record_segments,
)
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import Source, open_source
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import InputError
from dsv4_mlx.weights.records import OfficialRecordMap, Range, repeat_scales
from dsv4_mlx.weights.resident_experts import room
from dsv4_mlx.weights.stored import Advance

THREADS = 4
DTYPES = {"F32": mx.float32, "BF16": mx.bfloat16, "I64": mx.int64, "F8_E4M3": mx.uint32}


class OfficialModel:
    """StoredModel over an official folder."""

    def __init__(self, folder: Path) -> None:
        """Check headers and index against each other and config.json. Raises InputError, MachineError."""
        self.source = open_source(folder)
        self.table = match(self.source)

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    @cached_property
    def manifest(self) -> Manifest:
        source = self.source
        texts = {name: len(text) for name, text in source.texts.items()}
        return Manifest(
            recipe=OFFICIAL,
            checkpoint=source.config.checkpoint,
            source=identify(source),
            tensors={weight.name: _manifest_tensor(source, weight) for weight in _dense(self.table)},
            experts={block.prefix: _expert_table(source, block) for block in self.table.blocks},
            files=texts | {name: header.size for name, header in source.shards.items()},
            made_by=f"dsv4-mlx {dsv4_mlx.__version__}",
        )

    def tensor_bytes(self) -> dict[str, int]:
        return {weight.name: self.stored_bytes(weight) for weight in _dense(self.table)}

    def record_map(self, block: str) -> OfficialRecordMap:
        layout, experts = self.manifest.experts[block], self.block(block).experts
        where = self.source.where
        shards = sorted({where[_tensor(e, s.name)] for e in experts for s in layout.segments})

        def part(tensor: str, at: int) -> Range:
            entry = self.source.entry(tensor)
            return Range(shards.index(where[tensor]), entry.start, entry.end - entry.start, at)

        ranges = tuple(
            tuple(sorted((part(_tensor(e, s.name), s.offset) for s in layout.segments), key=_place))
            for e in experts
        )
        paths = tuple(self.folder / shard for shard in shards)
        sizes = tuple(self.source.shards[shard].size for shard in shards)
        return OfficialRecordMap(paths, sizes, layout, ranges, self.scales_dtype(block))

    def scales_dtype(self, block: str) -> str:
        """The dtype of the scales of a block's experts. Raises InputError if they have several."""
        experts = self.block(block).experts
        found = {self.source.entry(w.scale_name).dtype for expert in experts for w in expert}
        if len(found) > 1:
            raise InputError(
                f"scales of the experts of {block} are {' and '.join(sorted(found))}, expected one type",
                where=self.folder,
                next="use the shards of one official release",
            )
        return found.pop()

    def expert_bytes(self) -> dict[str, int]:
        return {
            block.prefix: sum(self.stored_bytes(weight) for expert in block.experts for weight in expert)
            for block in self.table.blocks
        }

    def stored_bytes(self, weight: Weight) -> int:
        """Of its codes and scales."""
        entries = (self.source.entry(tensor.name) for tensor in weight.tensors())
        return sum(entry.end - entry.start for entry in entries)

    def block(self, prefix: str) -> BlockTensors:
        """A layer or draft block of the official table."""
        return next(block for block in self.table.blocks if block.prefix == prefix)

    def arrays(self, advance: Advance) -> OfficialArrays:
        return OfficialArrays(self, advance)


class OfficialArrays:
    """ArraySource over an official folder. Arrays come evaluated: reading them is what checks them."""

    def __init__(self, model: OfficialModel, advance: Advance) -> None:
        self._model, self._source, self._advance = model, model.source, advance
        self._scaled = {w.scale_name: w for w in _dense(model.table) if w.form == "fp8"}
        self._reader = SourceReader(model.source)
        self._pool = ThreadPoolExecutor(THREADS, "read")

    def array(self, file: str, key: str) -> mx.array:
        entry = self._source.entry(key)
        if key in self._scaled:
            raw = np.empty(entry.end - entry.start, np.uint8)
            self._read(key, raw.data)
            scales = scale_bytes(self._source, key, raw.data).reshape(entry.shape)
            return mx.array(expand_scales(scales, *self._scaled[key].shape))
        shape = entry.shape
        if entry.dtype == "F8_E4M3":
            shape = (shape[0], shape[1] // 4)
        array = _empty(shape, DTYPES[entry.dtype])
        self._read(key, _bytes(array))
        return array

    def records(self, block: str, table: ExpertTable) -> mx.array:
        """Experts are read side by side: one at a time would leave a fast disk idle."""
        array = room(table.count, table.record_bytes)
        view = _bytes(array)
        experts = self._model.block(block).experts

        def read(number: int) -> int:
            record = view[number * table.record_bytes : (number + 1) * table.record_bytes]
            count = 0
            for segment in table.segments:
                tensor = _tensor(experts[number], segment.name)
                entry = self._source.entry(tensor)
                size = entry.end - entry.start
                into = record[segment.offset : segment.offset + size]
                self._fill(tensor, into)
                if segment.dtype == "U8" and table.format == "mxfp8":
                    repeat_scales(scale_bytes(self._source, tensor, into), segment, record)
                count += size
            return count

        flying: list[Future[int]] = [self._pool.submit(read, number) for number in range(table.count)]
        try:
            for future in flying:
                self._advance(future.result())
        except BaseException:
            for future in flying:
                future.cancel()
            raise
        return array

    def finished(self) -> None:
        self._reader.unchanged()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _read(self, tensor: str, into: memoryview) -> None:
        self._fill(tensor, into)
        self._advance(len(into))

    def _fill(self, tensor: str, into: memoryview) -> None:
        self._reader.read(self._source.where[tensor], self._source.entry(tensor).start, into)
        check_bytes(self._source, tensor, into)


def _dense(table: Inventory) -> list[Weight]:
    return [table.embed, *(w for block in table.blocks for w in block.weights), *table.head]


def _tensor(expert: tuple[Weight, Weight, Weight], segment: str) -> str:
    matrix, part = SEGMENT_SOURCE[segment]
    return expert[matrix].tensors()[part].name


def _place(part: Range) -> tuple[int, int]:
    return part.file, part.offset


def _manifest_tensor(source: Source, weight: Weight) -> ManifestTensor:
    parts = {"weight": weight.name}
    if weight.form == "fp8":
        parts["scales"] = weight.scale_name
    return ManifestTensor(source.where[weight.name], NATIVE[weight.form], weight.shape, parts, {})


def _expert_table(source: Source, block: BlockTensors) -> ExpertTable:
    form = NATIVE[block.experts[0][0].form]
    segments = record_segments(*block.experts[0], form)
    file = source.where[block.experts[0][0].name]
    return ExpertTable(file, form, len(block.experts), record_bytes(segments), segments, ())


def _empty(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Memory to be read into."""
    array = mx.zeros(shape, dtype)
    mx.eval(array)
    return array


def _bytes(array: mx.array) -> memoryview:
    """The array's own memory, writable."""
    return memoryview(array).cast("B")  # type: ignore[arg-type]  # mlx doesn't declare the buffer it gives
