"""What will be written, byte for byte, before anything is written. Pure: no file is opened.

A plan follows from the config and the recipe alone, so the converter, resume, the free-space check and
`verify` all see the same files, offsets and sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_mlx.checkpoint.header import build_header
from dsv4_mlx.checkpoint.inventory import ITEM_BYTES, BlockTensors, Inventory, Weight
from dsv4_mlx.checkpoint.manifest import ALIGNMENT, Segment, packed, record_bytes, record_segments
from dsv4_mlx.convert.recipe import Format, Recipe


@dataclass(frozen=True)
class PlacedPart:
    """A tensor of an output file: `offset` counts from the first byte of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class TargetTensor:
    """A weight in its target format. `parts` has "weight"; "scales" and "biases" if the format has them."""

    weight: Weight
    format: Format
    parts: dict[str, PlacedPart]


@dataclass(frozen=True)
class ExpertRecords:
    """The routed experts of one block: record e begins at `offset + e * record_bytes`."""

    prefix: str
    format: Format
    experts: tuple[tuple[Weight, Weight, Weight], ...]  # w1 gate, w3 up, w2 down
    segments: tuple[Segment, ...]
    record_bytes: int
    offset: int


@dataclass(frozen=True)
class FilePlan:
    """One output file: its header, then either `targets` in file order or `records`."""

    name: str
    header: bytes
    size: int
    targets: tuple[TargetTensor, ...] = ()
    records: ExpertRecords | None = None


@dataclass(frozen=True)
class ConversionPlan:
    """`kept` names the weights that the recipe would have quantised had their width allowed it; of the routed
    experts, the block."""

    recipe: str
    files: tuple[FilePlan, ...]
    kept: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def make_plan(
    table: Inventory, recipe: Recipe, dtype_of: Callable[[Weight], str] | None = None
) -> ConversionPlan:
    """`dtype_of` tells the stored dtype of a raw weight for which the release leaves a choice."""
    kind = dtype_of or (lambda weight: weight.dtypes[0])
    files = [_dense("embed.safetensors", (table.embed,), recipe, kind)]
    for number, block in enumerate(table.layers):
        files += _block(f"layer-{number:02d}", block, recipe, kind)
    files.append(_dense("head.safetensors", table.head, recipe, kind))
    for number, block in enumerate(table.extra):
        files += _block(f"mtp-{number}", block, recipe, kind)
    kept = [w.name for w in table.weights() if w.part != "experts" and recipe.falls_back(w)]
    kept += [f"{b.prefix}.ffn.experts" for b in table.blocks if any(map(recipe.falls_back, b.experts[0]))]
    return ConversionPlan(recipe.name, tuple(files), tuple(kept))


def _block(stem: str, block: BlockTensors, recipe: Recipe, kind: Callable[[Weight], str]) -> list[FilePlan]:
    return [
        _dense(f"{stem}.safetensors", block.weights, recipe, kind),
        _records(f"{stem}.experts.safetensors", block, recipe),
    ]


def _dense(name: str, weights: tuple[Weight, ...], recipe: Recipe, kind: Callable[[Weight], str]) -> FilePlan:
    wanted = [
        (weight, part, key, dtype, shape)
        for weight in weights
        for part, (key, dtype, shape) in _parts(weight, recipe.format(weight), kind).items()
    ]
    # Whole pages first: they stay on page boundaries, for direct writes and for mapping. Among the rest,
    # widest items first keeps every tensor aligned to its own item size.
    wanted.sort(
        key=lambda item: (
            math.prod(item[4]) * ITEM_BYTES[item[3]] % ALIGNMENT > 0,
            -ITEM_BYTES[item[3]],
            item[2],
        )
    )
    header = build_header([(key, dtype, shape) for _, _, key, dtype, shape in wanted])
    offset = len(header)
    placed: dict[str, dict[str, PlacedPart]] = {}
    for weight, part, key, dtype, shape in wanted:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        placed.setdefault(weight.name, {})[part] = PlacedPart(key, dtype, shape, offset, size)
        offset += size
    targets = [TargetTensor(weight, recipe.format(weight), placed[weight.name]) for weight in weights]
    targets.sort(key=lambda target: target.parts["weight"].offset)
    return FilePlan(name, header, offset, targets=tuple(targets))


def _parts(
    weight: Weight, form: Format, kind: Callable[[Weight], str]
) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """part -> (key, dtype, shape) of the tensors that store `weight`."""
    if form == "raw":
        return {"weight": (weight.name, kind(weight), weight.shape)}
    rows, columns = weight.shape
    stem = weight.name.removesuffix(".weight")
    return {
        part: (f"{stem}.{part}", dtype, shape) for part, (dtype, shape) in packed(form, rows, columns).items()
    }


def _records(name: str, block: BlockTensors, recipe: Recipe) -> FilePlan:
    form = recipe.record_format(block.experts[0])
    segments = record_segments(*block.experts[0], form)
    record = record_bytes(segments)
    count = len(block.experts)
    # U32 because a U8 tensor of this size would exceed MLX's 2^31 elements.
    header = build_header([("experts", "U32", (count, record // 4))])
    records = ExpertRecords(block.prefix, form, block.experts, segments, record, len(header))
    return FilePlan(name, header, len(header) + count * record, records=records)
