"""Open an official checkpoint: config, index and every shard's header. No tensor data is read.

Every file that is named is checked to lie inside the folder. Links that lead out are refused, with one
exception: in the Hugging Face cache, `snapshots/<revision>/` holds links into `blobs/` beside it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.header import Header, HeaderEntry, check_kind, read_header
from dsv4_mlx.checkpoint.inventory import AN_EXPERT, EXPERT_DTYPES
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.errors import Dsv4Warning, InputError, MachineError

INDEX = "model.safetensors.index.json"
REQUIRED = ("config.json", "tokenizer.json")  # copied unchanged
OPTIONAL = ("generation_config.json", "tokenizer_config.json")  # copied where present
LONGEST_NAME = 255  # bytes, of any file system in use
LARGEST_TEXT = 2**28  # bytes; the official index is 5 MB, the tokenizer 8 MB


@dataclass(frozen=True)
class Source:
    """An official checkpoint whose headers agree with its index."""

    folder: Path
    config: ModelConfig
    texts: dict[str, bytes]  # config, tokenizer, ... as stored
    index_digest: str
    shards: dict[str, Header]  # by file name, in order
    where: dict[str, str]  # tensor -> shard

    def entry(self, tensor: str) -> HeaderEntry:
        return self.shards[self.where[tensor]].tensors[tensor]

    def entries(self) -> Iterator[tuple[str, HeaderEntry]]:
        for header in self.shards.values():
            yield from header.tensors.items()


def open_source(folder: Path) -> Source:
    """Read everything but the weights. Raises InputError or MachineError."""
    if not folder.is_dir():
        raise InputError(
            "there is no such folder", where=folder, next="give the folder of the official checkpoint"
        )
    return outline(folder, lambda name: read_header(inside(folder, name)))


def read_config(folder: Path) -> ModelConfig:
    """Raises InputError for a config.json that is another model's, or none."""
    return parse_config(_text(folder, "config.json").decode("utf-8", "replace"), folder / "config.json")


def outline(folder: Path, header_of: Callable[[str], Header]) -> Source:
    """As open_source, with the shards' headers from elsewhere: the shards need not be there yet."""
    config = read_config(folder)
    texts = {name: _text(folder, name) for name in REQUIRED}
    _check_tokenizer(folder / "tokenizer.json", texts["tokenizer.json"])
    texts |= {name: _text(folder, name) for name in OPTIONAL if (folder / name).exists()}
    index = _text(folder, INDEX)
    weight_map, total = _parse_index(folder / INDEX, index)
    shards = {name: header_of(name) for name in sorted(set(weight_map.values()))}
    _compare(folder, weight_map, total, shards)
    if config.expert_format is None and AN_EXPERT in weight_map:  # early releases and repacked ones don't say
        dtype = shards[weight_map[AN_EXPERT]].tensors[AN_EXPERT].dtype
        config = replace(config, expert_format=EXPERT_DTYPES.get(dtype))
    return Source(folder, config, texts, hashlib.sha256(index).hexdigest(), shards, weight_map)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of this folder. Raises InputError if the name or a link leads out of it."""
    if (
        not name
        or not name.isprintable()
        or len(name.encode()) > LONGEST_NAME
        or name in (".", "..")
        or "/" in name
        or "\\" in name
    ):
        raise InputError(
            f"the index names the file {name!r}, expected a plain name in its own folder",
            where=folder / INDEX,
            next="use the index of the official checkpoint",
        )
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except RuntimeError:  # Python 3.11 and 3.12; later ones leave it to the next to open it
        raise InputError(f"{name} is a link that leads to itself", where=path) from None
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if real.parent not in allowed:
        raise InputError(
            f"{name} is a link that leads out of the folder, to {real}",
            where=path,
            next="put the file itself there; a link to the whole folder is followed",
        )
    return path


def _text(folder: Path, name: str) -> bytes:
    path = inside(folder, name)
    try:
        if path.is_fifo():  # reading it would wait for ever
            raise InputError(f"{name} is a pipe, expected a file", where=path)
        if path.stat().st_size > LARGEST_TEXT:
            raise InputError(f"{name} has {path.stat().st_size} bytes, far too many", where=path)
        text = path.read_bytes()
        check_kind(path, text[:64])
        return text
    except FileNotFoundError:
        raise InputError(
            f"there is no {name}", where=folder, next="give the folder of a complete official checkpoint"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{name} is a folder, expected a file", where=path) from None
    except OSError as error:
        raise MachineError(f"{name} can't be read: {error.strerror or error}", where=path) from None


def _check_tokenizer(path: Path, text: bytes) -> None:
    """Far from proof that it works, but an empty or cut file shows before hours of converting."""
    try:
        sound = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise InputError(
            "tokenizer.json is damaged: it is not a JSON object", where=path, next="download this file again"
        )


def _parse_index(path: Path, text: bytes) -> tuple[dict[str, str], float | None]:
    """The index's tensor -> shard map and total size."""

    def wrong(why: str) -> InputError:
        return InputError(f"the index is damaged: {why}", where=path, next="download this file again")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise wrong("it names a tensor twice")
        return found

    try:
        raw = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise wrong("it is not JSON") from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise wrong("it has no weight_map")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise wrong(f"it places {tensor} in {shard!r}")
    metadata = raw.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, total if isinstance(total, (int, float)) else None


def _compare(
    folder: Path, weight_map: dict[str, str], total: float | None, shards: dict[str, Header]
) -> None:
    """Index and shards must describe the same tensors; each tensor must be in one shard only."""
    seen: dict[str, str] = {}
    problems: list[str] = []
    for shard, header in shards.items():
        for tensor in header.tensors:
            if tensor in seen:
                problems.append(f"{tensor} is in both {seen[tensor]} and {shard}")
            elif tensor not in weight_map:
                problems.append(f"{tensor} is in {shard} but not in the index")
            seen.setdefault(tensor, shard)
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].tensors:
            found = f"; it is in {seen[tensor]}" if tensor in seen else ""
            problems.append(f"{tensor} is not in {shard} as the index says{found}")
    stored = sum(entry.end - entry.start for header in shards.values() for entry in header.tensors.values())
    if not problems and total is not None and total != stored:
        message = f"{INDEX} says {total} bytes of tensors, the shards hold {stored}: taken for a wrong total"
        warnings.warn(message, Dsv4Warning, stacklevel=1)
    if problems:
        raise InputError(
            "index and shards are not of one revision: " + listed(problems, "; "),
            where=folder / INDEX,
            next="download all files of one revision",
        )


def listed(items: list[str], separator: str = ", ", limit: int = 20) -> str:
    """The first items, and how many more there are."""
    text = separator.join(items[:limit])
    return text if len(items) <= limit else f"{text}{separator}and {len(items) - limit} more"
