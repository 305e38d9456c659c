"""Checkpoints of the true shape that take almost no disk: what is small carries values, the rest is holes.

A hole of a sparse file reads as zero bytes, which every format allows and calls zero: codes 0 of FP4, FP8 and
of MLX's own formats, the scale byte 0 (2^-127), an affine scale and bias of 0. Values carry norms, sinks,
hyper-connections, hash tables, biases of routers; of their matrices the first and last quarter of experts;
of embedding and head the FIRST and the LAST rows: the bytes, common merges and the markers.

Headers, index, manifest and digests are those of any checkpoint: `write_converted` makes the folder that the
converter would, to the byte where it computes nothing (recipe native). Of zeros that it quantises it stores
scales that are not 0, which would fill the disk; here they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dsv4_mlx.checkpoint.identity import identify
from dsv4_mlx.checkpoint.inventory import Tensor, Weight
from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.checkpoint.manifest import Manifest
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import open_source
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.codec import affine4, raw_rows, values
from dsv4_mlx.convert.conversion_plan import FilePlan, TargetTensor, make_plan
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.convert.summary import build_manifest
from dsv4_mlx.errors import Progress
from dsv4_mlx.synthetic.tokenizer import tokenizer_json
from dsv4_mlx.synthetic.values import Bytes, least_scales, tensor_bytes
from dsv4_mlx.synthetic.write import Hole, make_empty, write_official, writing

FIRST, LAST = 320, 32  # rows of embedding and head
ZEROS = bytes(1 << 20)

Pieces = Iterable[tuple[int, Bytes]]  # where in a tensor its bytes lie; all other bytes are 0


def write_holes(
    out: Path, config: dict[str, Any], seed: int = 0, *, progress: Progress | None = None
) -> ModelConfig:
    """As `write_checkpoint`, in the official layout, with holes. Raises as it does."""
    model = parse_config(json.dumps(config), "the given config")

    def values_or_holes(weight: Weight, tensor: Tensor) -> Iterator[Bytes | Hole]:
        return _official(model, weight, tensor, seed)

    return write_official(out, config, tokenizer_json(model.vocab_size), values_or_holes, progress=progress)


def write_converted(official: Path, out: Path, recipe: str = "native") -> Manifest:
    """Write the conversion of a folder that `write_holes` wrote to the new or empty folder `out`.

    Raises UsageError for an unknown recipe, InputError for a folder that can't be used, MachineError if
    writing fails.
    """
    rules = find_recipe(recipe)
    source = open_source(official)
    plan = make_plan(match(source), rules, lambda weight: source.entry(weight.name).dtype)
    digests = {}
    make_empty(out)
    with writing(out), SourceReader(source) as reader:
        for name, text in source.texts.items():
            (out / name).write_bytes(text)
        for file in plan.files:
            digests[file.name] = _write_file(out / file.name, file, reader)
        manifest = build_manifest(plan, source, identify(source), digests)
        (out / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def carried_rows(weight: Weight) -> list[tuple[int, int]]:
    """The rows of a weight that carry values, first to last of each stretch."""
    rows = weight.shape[0]
    if weight.part in ("embedding", "head"):
        return [(0, rows)] if rows <= FIRST + LAST else [(0, FIRST), (rows - LAST, rows)]
    if weight.name.endswith(".ffn.gate.weight"):
        return [(0, rows // 4), (rows - rows // 4, rows)]
    return [(0, rows)] if weight.part in ("norm", "router", "sink", "hyper") else []


def _official(model: ModelConfig, weight: Weight, tensor: Tensor, seed: int) -> Iterator[Bytes | Hole]:
    if weight.form != "raw":
        # A float of zero bytes is no scale.
        yield from least_scales(tensor) if tensor.dtypes[0] == "F32" else [Hole(tensor.bytes)]
        return
    stretches, width, done = carried_rows(weight), tensor.bytes // tensor.shape[0], 0
    count = sum(last - first for first, last in stretches)
    narrow = replace(tensor, shape=(count, *tensor.shape[1:]))
    carried = np.concatenate([*tensor_bytes(model, weight, narrow, seed)]) if count else np.empty(0, np.uint8)
    for first, last in stretches:
        yield Hole((first - done) * width)
        data, carried = np.split(carried, [(last - first) * width])
        yield data
        done = last
    yield Hole((tensor.shape[0] - done) * width)


def _write_file(path: Path, file: FilePlan, reader: SourceReader) -> dict[str, str]:
    """Digest key -> SHA-256."""
    found: dict[str, str] = {}
    with path.open("wb") as out:
        out.write(file.header)
        for target in file.targets:
            parts = _parts(reader, target)
            for name, placed in target.parts.items():
                pieces = parts.get(name, [])
                for at, data in pieces:
                    out.seek(placed.offset + at)
                    out.write(data.data)
                found[placed.key] = (
                    _digest(placed.bytes, pieces) if pieces else _digest_of_zeros(placed.bytes)
                )
        out.truncate(file.size)
    if file.records is not None:
        blank = _digest_of_zeros(file.records.record_bytes)
        found |= {str(number): blank for number in range(len(file.records.experts))}
    return found


def _parts(reader: SourceReader, target: TargetTensor) -> dict[str, list[tuple[int, Bytes]]]:
    """The pieces of each part of a tensor that is converted."""
    found: dict[str, list[tuple[int, Bytes]]] = {}
    for first, last in carried_rows(target.weight):
        if target.format == "affine4":
            made = affine4(values(reader, target.weight, first, last))
            parts = dict(zip(("weight", "scales", "biases"), made, strict=True))
        else:
            parts = {"weight": raw_rows(reader, target.weight.name, first, last).reshape(-1)}
        for name, data in parts.items():
            found.setdefault(name, []).append((first * (data.size // (last - first)), data))
    return found


def _digest(size: int, pieces: Pieces) -> str:
    """SHA-256 of `size` bytes."""
    digest, done = hashlib.sha256(), 0
    for at, data in pieces:
        _add_zeros(digest, at - done)
        digest.update(data.data)
        done = at + data.size
    _add_zeros(digest, size - done)
    return digest.hexdigest()


@cache
def _digest_of_zeros(size: int) -> str:
    return _digest(size, ())


def _add_zeros(digest: hashlib._Hash, count: int) -> None:
    for start in range(0, count, len(ZEROS)):
        digest.update(ZEROS[: count - start])
