"""The on-disk contract of a converted model: `manifest.json`, written last, read first.

A converted folder holds

    manifest.json            this file; its presence says that the conversion finished
    config.json              the official one, unchanged
    tokenizer.json           the official one, unchanged
    embed.safetensors        embed.weight
    layer-00.safetensors     every tensor of layer 0 but the routed experts, under official names
    layer-00.experts.safetensors   one U32 tensor `experts` [experts, record_bytes / 4]
    ...
    head.safetensors         head.weight, norm.weight, hc_head_*
    mtp-0.safetensors, mtp-0.experts.safetensors

A tensor keeps its official name. In a quantised format `X.weight` holds MLX's codes (U32), `X.scales` the
scales and, for affine formats, `X.biases` the offsets. One expert is one record: a contiguous, 16 KiB
aligned range of its layer's file, cut into `Segment`s; every record of a file has the same segments.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dsv4_mlx.checkpoint.inventory import Form, Weight
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import InputError

FORMAT = 1
NAME = "manifest.json"
OFFICIAL = "official"  # the recipe in a manifest that is made up for an official folder
REPAIR = (
    "dsv4-mlx verify FOLDER names what is damaged, dsv4-mlx convert SOURCE FOLDER --repair makes that again"
)
ALIGNMENT = 16 * 1024  # Apple silicon's page: a record can be mapped or read without a partial page


@dataclass(frozen=True)
class ManifestTensor:
    """One tensor of the model. `shape` is the logical shape [out, in], whatever the codes' packing.

    `format` is "raw" (stored as the official dtype), "mxfp8", "mxfp4" or "affine4".
    `parts` maps "weight" and, where the format has them, "scales" and "biases" to keys in `file`.
    `digests` maps the same names to the SHA-256 of the part's bytes.
    """

    file: str
    format: str
    shape: tuple[int, ...]
    parts: dict[str, str]
    digests: dict[str, str]


@dataclass(frozen=True)
class Segment:
    """A range of an expert record: `name` as in SEGMENTS, `shape` and `dtype` as MLX takes it."""

    name: str
    offset: int
    bytes: int
    shape: tuple[int, ...]
    dtype: str  # "U32" codes, "U8" E8M0 scales, "BF16" affine scales and biases


@dataclass(frozen=True)
class ExpertTable:
    """The routed experts of one layer. `digests[e]` is the SHA-256 of record e, padding included."""

    file: str
    format: str
    count: int
    record_bytes: int
    segments: tuple[Segment, ...]
    digests: tuple[str, ...]


# Order in a record; affine formats have the biases as well.
SEGMENTS = (
    "gate_codes", "up_codes", "gate_scales", "up_scales", "gate_biases", "up_biases",
    "down_codes", "down_scales", "down_biases",
)  # fmt: skip

SEGMENT_ITEM_BYTES = {"U32": 4, "U8": 1, "BF16": 2}


class Packing(NamedTuple):
    """A quantised format: bits of a code, columns that share a scale, the scales' dtype; are there biases."""

    bits: int
    group: int
    scale: str
    biases: bool


PACKINGS = {
    "mxfp4": Packing(4, 32, "U8", False),
    "mxfp8": Packing(8, 32, "U8", False),
    "affine4": Packing(4, 64, "BF16", True),
}


def packed(format: str, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, int]]]:
    """Part -> dtype and shape of a matrix [rows, columns] in that format, as MLX takes it."""
    packing = PACKINGS[format]
    scale = (packing.scale, (rows, columns // packing.group))
    parts = {"weight": ("U32", (rows, columns * packing.bits // 32)), "scales": scale}
    return parts | ({"biases": scale} if packing.biases else {})


CHECKPOINTS = ("april", "0731")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Paths are relative to the folder that holds it."""

    recipe: str
    checkpoint: str  # "april" or "0731": decides effort words and drafters
    source: dict[str, Any]  # identity of the official checkpoint: see checkpoint/identity.py
    tensors: dict[str, ManifestTensor]
    experts: dict[str, ExpertTable]  # by block prefix: "layers.0", ..., "mtp.0"
    files: dict[str, int]  # every file of the folder but this one -> bytes
    format: int = FORMAT
    made_by: str = field(default="")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


class OtherFormat(InputError):
    """A manifest of another version of this contract."""


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`. Raises InputError."""
    path = folder / NAME
    if path.is_fifo():  # reading it would wait for ever
        raise InputError("manifest.json is a pipe, expected a file", where=path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "there is no manifest.json: this is not a finished conversion",
            where=folder,
            next="give an official checkpoint, or convert one: dsv4-mlx convert SOURCE TARGET",
        ) from None
    except OSError as error:
        raise InputError(f"manifest.json can't be read: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it can't be read as JSON ({error})") from None
    if not isinstance(raw, dict) or "format" not in raw:
        raise _damaged(path, "it is not an object with a format number")
    if raw["format"] != FORMAT:
        raise OtherFormat(
            f"the folder has format {raw['format']!r}, this program reads format {FORMAT}",
            where=path,
            next="convert the official checkpoint again, or use the version that made it",
        )
    try:
        return Manifest(
            recipe=_recipe(raw["recipe"]),
            checkpoint=_checkpoint(raw["checkpoint"]),
            source=dict(raw["source"]),
            tensors={name: _tensor(value) for name, value in raw["tensors"].items()},
            experts={name: _experts(value) for name, value in raw["experts"].items()},
            files={str(name): int(size) for name, size in raw["files"].items()},
            made_by=str(raw["made_by"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"a field is missing or wrong ({type(error).__name__}: {error})") from None


def _recipe(name: object) -> str:
    if name == OFFICIAL:  # such a folder would be taken for one without digests
        raise ValueError(f"recipe is {name!r}, which no conversion has")
    return str(name)


def _checkpoint(name: object) -> str:
    if name not in CHECKPOINTS:
        raise ValueError(f"checkpoint is {name!r}, expected one of {', '.join(CHECKPOINTS)}")
    return str(name)


def _tensor(raw: dict[str, Any]) -> ManifestTensor:
    return ManifestTensor(
        _inside(raw["file"]), str(raw["format"]), tuple(raw["shape"]), _texts(raw["parts"]),
        _texts(raw["digests"]),
    )  # fmt: skip


def _texts(raw: dict[str, Any]) -> dict[str, str]:
    if "weight" not in raw or not all(isinstance(value, str) for value in raw.values()):
        raise ValueError(f"{raw!r} is not a text for the weight and each of its parts")
    return dict(raw)


def _experts(raw: dict[str, Any]) -> ExpertTable:
    segments = tuple(
        Segment(s["name"], int(s["offset"]), int(s["bytes"]), tuple(s["shape"]), s["dtype"])
        for s in raw["segments"]
    )
    table = ExpertTable(
        _inside(raw["file"]), str(raw["format"]), int(raw["count"]), int(raw["record_bytes"]), segments,
        tuple(raw["digests"]),
    )  # fmt: skip
    if table.record_bytes % ALIGNMENT:
        raise ValueError(f"expert records have {table.record_bytes} bytes, no multiple of {ALIGNMENT}")
    for segment in segments:
        if not _fits(segment, table.record_bytes):
            raise ValueError(f"expert segment {segment.name!r} lies outside its record or contradicts itself")
    return table


def _fits(segment: Segment, record_bytes: int) -> bool:
    """Whether a view made of this segment stays inside the record: views are not checked again."""
    item = SEGMENT_ITEM_BYTES.get(segment.dtype, 0)
    return (
        segment.name in SEGMENTS
        and item > 0
        and len(segment.shape) == 2
        and all(isinstance(size, int) and size > 0 for size in segment.shape)
        and math.prod(segment.shape) * item == segment.bytes
        and segment.offset % item == 0
        and 0 <= segment.offset <= record_bytes - segment.bytes
    )


def _inside(name: object) -> str:
    if not isinstance(name, str) or "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError(f"file {name!r} is not a plain name in this folder")
    return name


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"manifest.json is damaged: {why}", where=path, next=REPAIR)


def config_of(folder: Path, manifest: Manifest) -> ModelConfig:
    """config.json; where it doesn't say how the experts were published, the manifest tells.

    Raises InputError.
    """
    config = ModelConfig.read(folder)
    if config.expert_format is None and any(table.format != "mxfp4" for table in manifest.experts.values()):
        return replace(config, expert_format="fp8")
    return config


NATIVE: dict[Form, Literal["raw", "mxfp8", "mxfp4"]] = {"raw": "raw", "fp8": "mxfp8", "fp4": "mxfp4"}
MX_GROUP = 32  # columns that share a scale in mxfp8 and mxfp4
SEGMENT_SOURCE = {  # segment -> (w1, w3 or w2; codes or scales)
    "gate_codes": (0, 0), "up_codes": (1, 0), "down_codes": (2, 0),
    "gate_scales": (0, 1), "up_scales": (1, 1), "down_scales": (2, 1),
}  # fmt: skip


def record_segments(gate: Weight, up: Weight, down: Weight, format: str) -> tuple[Segment, ...]:
    """The ranges of one expert's record in that format, in the order of manifest.SEGMENTS."""
    return segments_of(gate.shape, up.shape, down.shape, format)


def segments_of(
    gate: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...], format: str
) -> tuple[Segment, ...]:
    """As record_segments, of matrices of these shapes [out, in]."""
    segments: list[Segment] = []
    offset = 0
    for named in ((("gate", gate), ("up", up)), (("down", down),)):
        parts = {name: packed(format, *shape) for name, shape in named}
        for part in parts[named[0][0]]:
            for name, _ in named:
                dtype, shape = parts[name][part]
                size = math.prod(shape) * SEGMENT_ITEM_BYTES[dtype]
                kind = "codes" if part == "weight" else part
                segments.append(Segment(f"{name}_{kind}", offset, size, shape, dtype))
                offset += size
    return tuple(segments)


def record_bytes(segments: tuple[Segment, ...]) -> int:
    """A record with its padding."""
    used = segments[-1].offset + segments[-1].bytes
    return -(-used // ALIGNMENT) * ALIGNMENT
