"""A model's folder -> the model: every stored tensor taken exactly once, and in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.checkpoint.manifest import REPAIR, Manifest, ManifestTensor
from dsv4_mlx.checkpoint.source import INDEX
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import InputError, Progress
from dsv4_mlx.model.block import Block
from dsv4_mlx.model.tensors import ExpertProduct, ExpertSource, Linear
from dsv4_mlx.model.transformer import ChunkMajor, Transformer, one_behind
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.weights.converted import ConvertedModel
from dsv4_mlx.weights.official import OfficialModel
from dsv4_mlx.weights.records import Paged
from dsv4_mlx.weights.resident_experts import QUANTISED, ResidentExperts, layout, segments_differ
from dsv4_mlx.weights.stored import ArraySource, StoredModel

FLOATS = (mx.bfloat16, mx.float32)


class StoredTensors:
    """TensorSource over a stored model, whose manifest is held against what config.json asks for."""

    def __init__(
        self, stored: StoredModel, arrays: ArraySource, dtype: mx.Dtype, paged: Paged | None = None
    ) -> None:
        self._stored, self._paged = stored, paged
        self.folder, self.manifest, self.config = stored.folder, stored.manifest, stored.config
        self._arrays, self._dtype = arrays, dtype
        self._left = set(self.manifest.tensors)
        self._blocks_left = set(self.manifest.experts)

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

    def experts(self, block: str, product: ExpertProduct) -> ExpertSource:
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
        if self._paged is not None:
            return self._paged(block, self._stored.record_map(block), product)
        return ResidentExperts(self._arrays.records(block, table), table, self._dtype, product)

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
        tensor = self._tensor(f"{name}.weight", shape)
        parts = {part: self._array(tensor.file, key) for part, key in tensor.parts.items()}
        if tensor.format != "raw" and tensor.format not in QUANTISED:
            raise self._bad(f"{name} has format {tensor.format!r}, expected raw or {sorted(QUANTISED)}")
        if tensor.format == "raw":
            self._check_raw(name, parts["weight"], shape, FLOATS, tensor.file)
            return Linear(parts["weight"] if dtype is None else parts["weight"].astype(dtype))
        found = {part: (array.dtype, array.shape) for part, array in parts.items()}
        if found != layout(tensor.format, *shape):
            raise self._bad(f"{name} is stored as {found}, which is not {tensor.format}", tensor.file)
        if dtype is None:
            raise self._bad(f"{name} has format {tensor.format!r}, expected raw: its product must be float32")
        mode, bits, group = QUANTISED[tensor.format]
        if mode == "affine":
            parts |= {part: parts[part].astype(dtype) for part in ("scales", "biases")}
        return Linear(**parts, mode=mode, bits=bits, group=group)

    def _raw(self, name: str, shape: tuple[int, ...], dtypes: tuple[mx.Dtype, ...] = FLOATS) -> mx.array:
        tensor = self._tensor(name, shape)
        if tensor.format != "raw":
            raise self._bad(f"{name} has format {tensor.format!r}, expected raw")
        array = self._array(tensor.file, tensor.parts["weight"])
        self._check_raw(name, array, shape, dtypes, tensor.file)
        return array

    def _check_raw(
        self, name: str, array: mx.array, shape: tuple[int, ...], dtypes: tuple[mx.Dtype, ...], file: str
    ) -> None:
        if array.shape != shape or array.dtype not in dtypes:
            found = f"{array.dtype} {list(array.shape)}"
            raise self._bad(f"{name} is {found}, expected {dtypes[0]} {list(shape)}", file)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> ManifestTensor:
        tensor = self.manifest.tensors.get(name)
        if tensor is None:
            raise self._bad(f"the manifest has no tensor {name}, which config.json asks for")
        if tensor.shape != shape:
            raise self._bad(f"{name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}")
        self._left.discard(name)
        return tensor

    def _array(self, file: str, key: str) -> mx.array:
        array = self._arrays.array(file, key)
        if array is None:
            raise self._bad(f"tensor {key} is not in the file", file)
        return array

    def _bad(self, message: str, file: str = "manifest.json") -> InputError:
        return InputError(message, where=self.folder / file, next=REPAIR)


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory and what its folder says about it."""

    config: ModelConfig
    manifest: Manifest
    model: Transformer


def activation_dtype() -> mx.Dtype:
    """bfloat16 on Metal. float32 on the CPU, whose low-precision quantised products are wrong by percents."""
    return mx.bfloat16 if mx.metal.is_available() else mx.float32


def find_model(folder: Path) -> StoredModel:
    """A converted folder or an official checkpoint. Raises InputError, MachineError."""
    official = os.path.lexists(folder / INDEX) or any(folder.glob("model-*-of-*.safetensors"))
    if official and not os.path.lexists(folder / MANIFEST):
        return OfficialModel(folder)
    return ConvertedModel(folder)


def open_model(
    stored: StoredModel,
    ops: Ops,
    numerics: Numerics,
    progress: Progress | None = None,
    paged: Paged | None = None,
) -> OpenedModel:
    """Read a model. Raises InputError for anything that is not what its manifest or headers say.

    `paged` makes the source of each block's routed experts; None reads them all into memory.
    """
    total = sum(size for name, size in stored.manifest.files.items() if name.endswith(".safetensors"))
    if paged is not None:
        total -= sum(stored.expert_bytes().values())
    read = done = 0

    def reached(count: int) -> None:
        nonlocal done
        done = min(max(done, count), total)
        if progress is not None:
            progress(done, total)

    def advance(count: int) -> None:
        nonlocal read
        read += count
        reached(read)

    with closing(stored.arrays(advance)) as arrays:
        model = assemble(stored, arrays, ops, numerics, paged)
        evaluated = 0
        for piece in _pieces(model):
            mx.eval(piece)
            evaluated += sum(array.nbytes for array in piece)
            reached(evaluated)
        arrays.finished()
    reached(total)
    model.eval()
    return OpenedModel(stored.config, stored.manifest, model)


def assemble(
    stored: StoredModel, arrays: ArraySource, ops: Ops, numerics: Numerics, paged: Paged | None = None
) -> Transformer:
    """The model made of these arrays. Only hash tables are evaluated. Raises InputError."""
    source = StoredTensors(stored, arrays, activation_dtype(), paged)
    model = Transformer(stored.config, source, ops, numerics)
    model.use(ChunkMajor(one_behind))
    source.finish(kept=None if stored.config.drafter is None else "mtp.")  # stored, not run
    return model


def _pieces(model: Transformer) -> Iterator[list[mx.array]]:
    """The arrays of the model, a layer at a time, so that what a layer was made from is let go of."""
    for part in (model.embed, model.head, model.vocabulary):
        yield _arrays(part)
    for block in model.blocks:
        yield from _block(block)
    for draft in model.drafts:
        yield from _block(draft.block)
        yield _arrays(draft)


def _block(block: Block) -> Iterator[list[mx.array]]:
    if isinstance(block.ffn.experts, ResidentExperts):
        yield [block.ffn.experts.records]
    yield _arrays(block)


def _arrays(part: Module) -> list[mx.array]:
    return [leaf for pair in tree_flatten(part.parameters()) if isinstance(leaf := pair[1], mx.array)]
