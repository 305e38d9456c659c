"""The models on this disk, found without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.convert.folder import state_of
from dsv4_mlx.errors import InputError
from dsv4_mlx.hub.models import SHIPPED

INDEX = "model.safetensors.index.json"
TYPE = "deepseek_v4"


@dataclass(frozen=True)
class FoundModel:
    """`model`: what a command takes as MODEL. `bytes` are those that lie there now."""

    model: str
    recipe: str
    bytes: int
    state: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def found_models(places: Sequence[Path]) -> list[FoundModel]:
    """Models in the folders `places`, in folders of theirs, in the Hub's cache, and the demo; by name."""
    found = {}
    for folder in _folders(places):
        with suppress(OSError, RuntimeError, InputError):  # a folder that may not be read
            path = folder.resolve()
            if path not in found and (model := look_at(path)) is not None:
                found[path] = model
    shipped = sum(path.stat().st_size for path in SHIPPED.iterdir() if path.is_file())
    demo = FoundModel("demo", "official", shipped, "ships with the program")
    return [*sorted([*found.values(), *_of_the_hub()], key=lambda one: one.model), demo]


def look_at(folder: Path, model: str = "") -> FoundModel | None:
    """What lies in `folder`; None where it is no DeepSeek V4, converted or official."""
    name = model or str(folder)
    if state_of(folder) == "unfinished":
        return FoundModel(name, "-", _size(folder), "its conversion has not ended: convert --resume goes on")
    if (folder / "manifest.json").is_file():
        try:
            manifest = read_manifest(folder)
        except InputError as error:
            return FoundModel(name, "-", _size(folder), str(error).splitlines()[0])
        missing = [file for file in manifest.files if not (folder / file).is_file()]
        return FoundModel(name, manifest.recipe, _size(folder), _state(len(missing), len(manifest.files)))
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if kind != TYPE:
        return None
    missing = [shard for shard in shards if not (folder / str(shard)).is_file()]
    return FoundModel(name, "official", _size(folder), _state(len(missing), len(shards)))


def _state(missing: int, files: int) -> str:
    return f"{missing} of {files} files are missing" if missing else "whole"


def _folders(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        yield place
        with suppress(OSError):
            for child in sorted(place.iterdir()):
                if child.is_dir() and not child.name.startswith("."):
                    yield child


def _of_the_hub() -> Iterator[FoundModel]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        for revision in repository.revisions:
            model = look_at(revision.snapshot_path, repository.repo_id)
            if model is not None:
                yield model


def _size(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
