"""A converted folder: tensors and expert records as `manifest.json` lists them."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.checkpoint.manifest import REPAIR, ExpertTable, Manifest, read_manifest
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.weights.records import RecordMap, converted_records
from dsv4_mlx.weights.stored import Advance


def open_shard(folder: Path, file: str, manifest: Manifest) -> dict[str, mx.array]:
    """The tensors of one file of the folder, not yet read. Raises InputError, MachineError."""
    path, size = folder / file, manifest.files.get(file)
    try:
        found = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"a file of the model is missing ({error.strerror})", where=path, next=REPAIR
        ) from None
    if found != size:
        message = f"the file has {found} bytes, the manifest says {size}"
        raise InputError(message, where=path, next=REPAIR)
    if not os.access(path, os.R_OK):
        raise InputError("you may not read this file of the model", where=path, next=f"chmod u+r {path}")
    try:
        arrays = mx.load(str(path), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the file is damaged: {error}", where=path, next=REPAIR) from None
    except OSError as error:
        raise MachineError(f"the file can't be read: {error}", where=path) from None
    if not isinstance(arrays, dict):
        raise TypeError(f"mx.load gave a {type(arrays).__name__} for {path}")
    return arrays


class ConvertedModel:
    """StoredModel over a converted folder."""

    def __init__(self, folder: Path) -> None:
        """Read manifest and config. Raises InputError."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.config = ModelConfig.read(folder)
        if self.manifest.checkpoint != self.config.checkpoint:
            raise InputError(
                f"manifest.json says checkpoint {self.manifest.checkpoint}, "
                f"config.json is of {self.config.checkpoint}",
                where=folder,
                next=REPAIR,
            )

    def tensor_bytes(self) -> dict[str, int]:
        headers: dict[str, dict[str, mx.array]] = {}
        sizes = {}
        for name, tensor in self.manifest.tensors.items():
            if tensor.file not in headers:
                headers[tensor.file] = open_shard(self.folder, tensor.file, self.manifest)
            try:
                sizes[name] = sum(headers[tensor.file][key].nbytes for key in tensor.parts.values())
            except KeyError as error:
                raise InputError(
                    f"tensor {error} is not in the file",
                    where=self.folder / tensor.file,
                    next=REPAIR,
                ) from None
        return sizes

    def expert_bytes(self) -> dict[str, int]:
        return {block: t.count * t.record_bytes for block, t in self.manifest.experts.items()}

    def record_map(self, block: str) -> RecordMap:
        table = self.manifest.experts[block]
        self.arrays(lambda _: None).records(block, table)  # the header must say so too
        return converted_records(self.folder, table, self.manifest.files[table.file])

    def arrays(self, advance: Advance) -> ConvertedArrays:
        return ConvertedArrays(self.folder, self.manifest)


class ConvertedArrays:
    """ArraySource over the files of a converted folder. Arrays are lazy: evaluating one reads it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._files: dict[str, dict[str, mx.array]] = {}

    def array(self, file: str, key: str) -> mx.array | None:
        if file not in self._files:
            self._files[file] = open_shard(self._folder, file, self._manifest)
        return self._files[file].pop(key, None)

    def records(self, block: str, table: ExpertTable) -> mx.array:
        records = self.array(table.file, "experts")
        expected = (table.count, table.record_bytes // 4)
        if records is None or records.shape != expected or records.dtype != mx.uint32:
            found = "missing" if records is None else f"{records.dtype} {list(records.shape)}"
            raise InputError(
                f"experts of {block} are {found}, expected uint32 {list(expected)}",
                where=self._folder / table.file,
                next=REPAIR,
            )
        return records

    def finished(self) -> None:
        """Nothing to say: the arrays are read later."""

    def close(self) -> None:
        self._files.clear()
