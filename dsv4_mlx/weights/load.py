"""A converted folder -> a model, every tensor used once and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import InputError
from dsv4_mlx.manifest import Manifest, read_manifest
from dsv4_mlx.model.block import Block
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops import Numerics, Ops
from dsv4_mlx.weights.converted import CONVERT_AGAIN, ConvertedTensors, open_shard
from dsv4_mlx.weights.experts import ResidentExperts
from dsv4_mlx.weights.records import Paged

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Opened:
    """A model in memory and what its folder says about it."""

    config: ModelConfig
    manifest: Manifest
    model: Transformer


def activation_dtype() -> mx.Dtype:
    """bfloat16 on Metal. float32 on the CPU, whose low-precision quantised products are wrong by percents."""
    return mx.bfloat16 if mx.metal.is_available() else mx.float32


def open_model(
    folder: Path,
    ops: Ops,
    numerics: Numerics,
    progress: Progress | None = None,
    paged: Paged | None = None,
) -> Opened:
    """Read a converted folder. Raises InputError for anything that is not what the manifest says.

    `paged` makes the source of each block's routed experts; None reads them all into memory.
    """
    manifest = read_manifest(folder)
    config = ModelConfig.read(folder)
    if manifest.checkpoint != config.checkpoint:
        raise InputError(
            f"manifest.json says checkpoint {manifest.checkpoint}, config.json is of {config.checkpoint}",
            where=folder,
            next=CONVERT_AGAIN,
        )
    source = ConvertedTensors(folder, manifest, config, activation_dtype(), paged)
    model = Transformer(config, source, ops, numerics)
    source.finish(kept=None if config.drafter is None else "mtp.")  # the drafter is stored, not run
    total = sum(size for name, size in manifest.files.items() if name.endswith(".safetensors"))
    if paged is not None:
        total -= sum(table.count * table.record_bytes for table in manifest.experts.values())
    done = 0
    for arrays in _pieces(model):
        mx.eval(arrays)
        done += sum(array.nbytes for array in arrays)
        if progress is not None:
            progress(min(done, total), total)
    if progress is not None:
        progress(total, total)
    model.eval()
    return Opened(config, manifest, model)


def tensor_bytes(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Stored bytes of every tensor of the manifest, from the files' headers."""
    headers: dict[str, dict[str, mx.array]] = {}
    sizes = {}
    for name, record in manifest.tensors.items():
        if record.file not in headers:
            headers[record.file] = open_shard(folder, record.file, manifest)
        try:
            sizes[name] = sum(headers[record.file][key].nbytes for key in record.parts.values())
        except KeyError as error:
            raise InputError(
                f"tensor {error} is not in the file", where=folder / record.file, next=CONVERT_AGAIN
            ) from None
    return sizes


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
