"""A converted folder as the source of a model's tensors, each taken exactly once."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.manifest import ExpertTable, Manifest, TensorRecord
from dsv4_mlx.model.tensors import Linear
from dsv4_mlx.weights.experts import QUANTISED, ResidentExperts, layout, segments_differ

FLOATS = (mx.bfloat16, mx.float32)
CONVERT_AGAIN = "convert the official checkpoint again"


def open_shard(folder: Path, file: str, manifest: Manifest) -> dict[str, mx.array]:
    """The tensors of one file of the folder, not yet read. Raises InputError, MachineError."""
    path, size = folder / file, manifest.files.get(file)
    try:
        found = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"a file of the model is missing ({error.strerror})", where=path, next=CONVERT_AGAIN
        ) from None
    if found != size:
        message = f"the file has {found} bytes, the manifest says {size}"
        raise InputError(message, where=path, next=CONVERT_AGAIN)
    if not os.access(path, os.R_OK):
        raise InputError("you may not read this file of the model", where=path, next=f"chmod u+r {path}")
    try:
        arrays = mx.load(str(path), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the file is damaged: {error}", where=path, next=CONVERT_AGAIN) from None
    except OSError as error:
        raise MachineError(f"the file can't be read: {error}", where=path) from None
    if not isinstance(arrays, dict):
        raise TypeError(f"mx.load gave a {type(arrays).__name__} for {path}")
    return arrays


class ConvertedTensors:
    """TensorSource over the files that `manifest` lists. Arrays are lazy: evaluating one reads it."""

    def __init__(self, folder: Path, manifest: Manifest, config: ModelConfig, dtype: mx.Dtype) -> None:
        self.folder, self.manifest, self.config = folder, manifest, config
        self._dtype = dtype
        self._files: dict[str, dict[str, mx.array]] = {}
        self._left = set(manifest.tensors)
        self._blocks_left = set(manifest.experts)

    @property
    def dtype(self) -> mx.Dtype:
        return self._dtype

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return self._linear(name, shape, self._dtype)

    def float_linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return self._linear(name, shape, None)

    def vector(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self._raw(name, shape).astype(mx.float32)

    def norm(self, name: str, size: int) -> mx.array:
        return self._raw(f"{name}.weight", (size,)).astype(self._dtype)

    def table(self, name: str, shape: tuple[int, ...]) -> mx.array:
        ids = self._raw(name, shape, (mx.int64,))
        if mx.any((ids < 0) | (ids >= self.config.experts)).item():
            # Products with matrices beyond the last would read memory that is not the model's.
            raise self._bad(f"{name} names an expert outside 0 to {self.config.experts - 1}")
        return ids.astype(mx.int32)

    def experts(self, block: str) -> ResidentExperts:
        table = self.manifest.experts.get(block)
        if table is None:
            raise self._bad(f"the manifest has no experts of {block}")
        self._blocks_left.discard(block)
        if table.format not in QUANTISED:
            raise self._bad(f"experts of {block} have format {table.format!r}, expected {sorted(QUANTISED)}")
        if table.count != self.config.experts:
            raise self._bad(f"{block} has {table.count} experts, config.json asks for {self.config.experts}")
        if segments_differ(table, self.config.expert_width, self.config.hidden_size):
            raise self._bad(f"the expert segments of {block} are not those that config.json asks for")
        return ResidentExperts(self._records(block, table), table, self._dtype)

    def finish(self, kept: str | None = None) -> None:
        """Every tensor of the folder must have been taken, but those whose names start with `kept`.

        Raises InputError that lists what is left.
        """
        left = sorted(self._left) + sorted(f"{block}.ffn.experts" for block in self._blocks_left)
        left = [name for name in left if kept is None or not name.startswith(kept)]
        if left:
            shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
            raise self._bad(
                f"{len(left)} tensors belong to no part of the model that config.json describes: {shown}"
            )

    def _linear(self, name: str, shape: tuple[int, int], dtype: mx.Dtype | None) -> Linear:
        record = self._record(f"{name}.weight", shape)
        parts = {part: self._array(record.file, key) for part, key in record.parts.items()}
        if record.format != "raw" and record.format not in QUANTISED:
            raise self._bad(f"{name} has format {record.format!r}, expected raw or {sorted(QUANTISED)}")
        if record.format == "raw":
            self._check_raw(name, parts["weight"], shape, FLOATS, record.file)
            return Linear(parts["weight"] if dtype is None else parts["weight"].astype(dtype))
        found = {part: (array.dtype, array.shape) for part, array in parts.items()}
        if found != layout(record.format, *shape):
            raise self._bad(f"{name} is stored as {found}, which is not {record.format}", record.file)
        if dtype is None:
            raise self._bad(f"{name} has format {record.format!r}, expected raw: its product must be float32")
        mode, bits, group = QUANTISED[record.format]
        if mode == "affine":
            parts |= {part: parts[part].astype(dtype) for part in ("scales", "biases")}
        return Linear(**parts, mode=mode, bits=bits, group=group)

    def _raw(self, name: str, shape: tuple[int, ...], dtypes: tuple[mx.Dtype, ...] = FLOATS) -> mx.array:
        record = self._record(name, shape)
        if record.format != "raw":
            raise self._bad(f"{name} has format {record.format!r}, expected raw")
        array = self._array(record.file, record.parts["weight"])
        self._check_raw(name, array, shape, dtypes, record.file)
        return array

    def _check_raw(
        self, name: str, array: mx.array, shape: tuple[int, ...], dtypes: tuple[mx.Dtype, ...], file: str
    ) -> None:
        if array.shape != shape or array.dtype not in dtypes:
            found = f"{array.dtype} {list(array.shape)}"
            raise self._bad(f"{name} is {found}, expected {dtypes[0]} {list(shape)}", file)

    def _record(self, name: str, shape: tuple[int, ...]) -> TensorRecord:
        record = self.manifest.tensors.get(name)
        if record is None:
            raise self._bad(f"the manifest has no tensor {name}, which config.json asks for")
        if record.shape != shape:
            raise self._bad(f"{name} has shape {list(record.shape)}, config.json asks for {list(shape)}")
        self._left.discard(name)
        return record

    def _records(self, block: str, table: ExpertTable) -> mx.array:
        records = self._array(table.file, "experts")
        expected = (table.count, table.record_bytes // 4)
        if records.shape != expected or records.dtype != mx.uint32:
            found = f"{records.dtype} {list(records.shape)}"
            raise self._bad(f"experts of {block} are {found}, expected uint32 {list(expected)}", table.file)
        return records

    def _array(self, file: str, key: str) -> mx.array:
        if file not in self._files:
            self._files[file] = open_shard(self.folder, file, self.manifest)
        array = self._files[file].pop(key, None)
        if array is None:
            raise self._bad(f"tensor {key} is not in the file", file)
        return array

    def _bad(self, message: str, file: str = "manifest.json") -> InputError:
        return InputError(message, where=self.folder / file, next=CONVERT_AGAIN)
