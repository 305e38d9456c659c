"""One bad byte costs one file: damage of every kind, in every kind of file, is named and made good alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub.fake_hub import REPOSITORY, Hub, serving

from dsv4_mlx.checkpoint.identity import identify, listed_digest
from dsv4_mlx.checkpoint.source import open_source
from dsv4_mlx.convert.run import convert
from dsv4_mlx.convert.verify import verify
from dsv4_mlx.errors import InputError
from dsv4_mlx.hub.download import convert_from_hub, download

Folder = Callable[[str], Path]
Damage = Callable[[Path, np.random.Generator], None]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def header(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def data(path: Path, rng: np.random.Generator) -> None:
    flip(path, int(rng.integers(header(path), path.stat().st_size)))


def anywhere(path: Path, rng: np.random.Generator) -> None:
    flip(path, int(rng.integers(path.stat().st_size)))


def longer(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def shorter(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, path.stat().st_size - 2)


# What can be wrong with a file of tensors, by the class of the byte, and with any file.
IN_WEIGHTS: dict[str, Damage] = {
    "length of the header": lambda path, rng: flip(path, int(rng.integers(8))),
    "header": lambda path, rng: flip(path, int(rng.integers(8, header(path)))),
    "first byte of data": lambda path, rng: flip(path, header(path)),
    "data": data,
    "last byte": lambda path, rng: flip(path, path.stat().st_size - 1),
}
IN_ALL: dict[str, Damage] = {
    "anywhere": anywhere,
    "longer": longer,
    "shorter": shorter,
    "empty": lambda path, rng: os.truncate(path, 0),
    "missing": lambda path, rng: path.unlink(),
}


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    """name -> SHA-256 and time of the last write."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def good(checkpoints: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A conversion by each recipe, and a download."""
    home = tmp_path_factory.mktemp("good")
    for recipe in ("native", "4bit"):
        convert(checkpoints("awkward"), home / recipe, recipe)
    with serving(Hub(checkpoints("awkward"))) as hub:
        download(REPOSITORY, home / "official", endpoint=hub.endpoint)
    return {path.name: path for path in home.iterdir()}


def only_one_file(before: dict[str, tuple[str, int]], folder: Path, name: str) -> None:
    """All bytes are what they were, and no file but `name` was written."""
    after = digests(folder)
    assert {file: found[0] for file, found in after.items()} == {
        file: found[0] for file, found in before.items()
    }
    assert {file for file in before if after[file] != before[file]} <= {name}


def named(folder: Path) -> set[str]:
    """Files that `verify` names, in its report or in its refusal."""
    try:
        return {damage.file for damage in verify(folder).damage}
    except InputError as error:
        return {path.name for path in folder.parent.joinpath("good").iterdir() if path.name in str(error)}


CONVERTED = [
    *((file, kind) for file in ("layer-01", "layer-02.experts") for kind in IN_WEIGHTS),
    *((file, kind) for file in ("layer-00.experts",) for kind in IN_ALL),
    *((file, kind) for file in ("config.json", "tokenizer.json", "manifest.json") for kind in IN_ALL),
]


@pytest.mark.parametrize(
    ("recipe", "every"), [("native", 2), ("4bit", 5), pytest.param("native", 1, marks=pytest.mark.long)]
)
def test_a_conversion_is_repaired_by_one_file(
    recipe: str,
    every: int,
    good: dict[str, Path],
    checkpoints: Folder,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    source, folder = checkpoints("awkward"), tmp_path / "model"
    shutil.copytree(good[recipe], folder)
    shutil.copytree(good[recipe], tmp_path / "good")
    for file, kind in CONVERTED[::every]:
        name = file if "." in file.removesuffix(".experts") else f"{file}.safetensors"
        before = digests(folder)
        (IN_WEIGHTS | IN_ALL)[kind](folder / name, rng)
        found = named(folder)
        if name != "manifest.json":
            assert name in found and len(found) <= 2, (name, kind, found)
        elif kind != "anywhere":  # a digest of it is wrong: the file that it is of is named
            assert name in found, (name, kind)
        summary = convert(source, folder, recipe, repair=True)
        assert (summary.status, summary.repaired) == ("repaired", (name,)), kind
        only_one_file(before, folder, name)
        assert verify(folder).ok
    assert convert(source, folder, recipe, repair=True).status == "nothing to do"


@pytest.mark.parametrize("seed", range(12))
def test_any_byte_of_the_manifest_is_made_good(
    seed: int, good: dict[str, Path], checkpoints: Folder, tmp_path: Path
) -> None:
    """Structure, names, sizes, digests, the source's identity: no weight is written for it."""
    folder, rng = tmp_path / "model", np.random.default_rng(seed)
    shutil.copytree(good["native"], folder)
    before = digests(folder)
    text = (folder / "manifest.json").read_bytes()
    fields = [b'"native"', b'"identity": "', b'"checkpoint": "', b'"format": 1', b'"digests"', b'"count": ']
    place = (
        text.index(fields[seed]) + len(fields[seed]) - 1
        if seed < len(fields)
        else int(rng.integers(len(text)))
    )
    flip(folder / "manifest.json", place)
    convert(checkpoints("awkward"), folder, repair=True)
    only_one_file(before, folder, "manifest.json")
    assert verify(folder).ok


@pytest.mark.parametrize("delete", [False, True])
def test_from_the_hub_only_what_the_file_is_made_of_is_fetched(
    delete: bool, good: dict[str, Path], checkpoints: Folder, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good["native"], folder)
    before = digests(folder)
    data(folder / "layer-01.experts.safetensors", rng)
    with serving(Hub(checkpoints("awkward"))) as hub:
        summary = convert_from_hub(REPOSITORY, folder, delete=delete, repair=True, endpoint=hub.endpoint)
    assert summary.repaired == ("layer-01.experts.safetensors",)
    only_one_file(before, folder, "layer-01.experts.safetensors")
    whole = {name for name, count in hub.sent.items() if count >= hub.sizes.get(name, 1 << 40)}
    shards = json.loads((checkpoints("awkward") / "model.safetensors.index.json").read_text())["weight_map"]
    assert whole >= {shards["layers.1.ffn.experts.0.w1.weight"]}
    big = {name for name in whole if hub.sizes[name] > 600_000}  # smaller ones are read for their headers
    assert big <= {shards["layers.1.ffn.experts.0.w1.weight"]}


def test_a_source_that_is_damaged_too_spoils_nothing(
    good: dict[str, Path], checkpoints: Folder, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, source = tmp_path / "model", tmp_path / "source"
    shutil.copytree(good["native"], folder)
    shutil.copytree(checkpoints("awkward"), source)
    before = digests(folder)
    os.truncate(folder / "layer-01.experts.safetensors", 5000)
    # The identity samples a large source; this one is read whole, so the manifest is told the new one.
    shard = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    flip(source / shard["layers.1.ffn.experts.0.w1.weight"], -5000)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"] = identify(open_source(source))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(InputError, match="the source doesn't give what was converted"):
        convert(source, folder, repair=True)
    assert (folder / "layer-01.experts.safetensors").stat().st_size == 5000
    after = digests(folder)
    assert {name for name in before if after[name] != before[name]} == {
        "manifest.json",
        "layer-01.experts.safetensors",
    }


def test_what_repair_is_not_for(checkpoints: Folder, good: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints("awkward")
    with pytest.raises(InputError, match="holds no conversion"):
        convert(source, tmp_path / "new", repair=True)
    shutil.copytree(good["native"], tmp_path / "model")
    with pytest.raises(InputError, match="recipe native, not 4bit"):
        convert(source, tmp_path / "model", "4bit", repair=True)
    with pytest.raises(InputError, match="another source"):
        convert(checkpoints("small"), tmp_path / "model", repair=True)


OFFICIAL = [
    *(("model-00002", kind) for kind in (*IN_WEIGHTS, *IN_ALL)),
    *((f, k) for f in ("config.json", "tokenizer.json", "model.safetensors.index.json") for k in IN_ALL),
]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_a_download_is_repaired_by_one_file(
    every: int, good: dict[str, Path], checkpoints: Folder, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "official"
    shutil.copytree(good["official"], folder)
    assert verify(folder).ok and verify(folder).unknown == 0
    with serving(Hub(checkpoints("awkward"))) as hub:
        for file, kind in OFFICIAL[::every]:
            name = next(path.name for path in good["official"].iterdir() if path.name.startswith(file))
            before, facts = digests(folder), (folder / name).stat()
            (IN_WEIGHTS | IN_ALL)[kind](folder / name, rng)
            if (folder / name).exists():  # as a disk rots: no time tells it
                os.utime(folder / name, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            assert {damage.file for damage in verify(folder).damage} == {name}, kind
            hub.gets.clear()
            hub.sent.clear()
            download(REPOSITORY, folder, endpoint=hub.endpoint, verify=True)
            only_one_file(before, folder, name)
            fetched = {file for file, count in hub.sent.items() if count >= hub.sizes.get(file, 0) > 600_000}
            assert fetched <= {name} and verify(folder).ok
    assert len(listed_digest(folder, "config.json") or "") == 40
