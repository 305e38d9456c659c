"""A model's folder -> the model, every tensor used once and in memory."""

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
from dsv4_mlx.checkpoint.manifest import Manifest
from dsv4_mlx.checkpoint.source import INDEX
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import Progress
from dsv4_mlx.model.block import Block
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import Numerics, Ops
from dsv4_mlx.weights.bind import StoredTensors
from dsv4_mlx.weights.converted import ConvertedModel
from dsv4_mlx.weights.official import OfficialModel
from dsv4_mlx.weights.records import Paged
from dsv4_mlx.weights.resident_experts import ResidentExperts
from dsv4_mlx.weights.stored import ArraySource, StoredModel


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
