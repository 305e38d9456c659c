"""Checkpoints of the true shape, mostly holes: what reads headers, sizes and shapes takes them for whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blank import BlankArrays
from checkpoint.decoding import official_tensors
from checkpoints import Checkpoints
from safetensors import safe_open

from dsv4_mlx.checkpoint.inventory import inventory
from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.cli.main import run
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.run import convert
from dsv4_mlx.convert.verify import verify
from dsv4_mlx.ops.table import EXACT, REFERENCE
from dsv4_mlx.synthetic import cut, release_config
from dsv4_mlx.synthetic.__main__ import main
from dsv4_mlx.synthetic.holes import FIRST, LAST, write_converted, write_holes
from dsv4_mlx.weights.load import assemble, find_model
from dsv4_mlx.weights.resident_experts import ResidentExperts

DISK = 320e6  # bytes that a folder with 43 layers of 256 experts may take
Output = pytest.CaptureFixture[str]


def disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def small(checkpoints: Checkpoints, name: str) -> dict[str, Any]:
    """Few layers, and a vocabulary with rows that carry nothing."""
    config = checkpoints.config(name)
    return cut(config, layers=min(4, config["num_hidden_layers"])) | {"vocab_size": 1280}


@pytest.mark.parametrize("name", ["small", "wide base", "0731", "pro"])
def test_a_conversion_is_what_the_converter_makes(
    name: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Every byte of every file, and so every digest."""
    write_holes(tmp_path / "official", small(checkpoints, name), seed=3)
    convert(tmp_path / "official", tmp_path / "converted")
    write_converted(tmp_path / "official", tmp_path / "holes")
    wanted = sorted(path.name for path in (tmp_path / "converted").iterdir())
    assert sorted(path.name for path in (tmp_path / "holes").iterdir()) == wanted
    for file in wanted:
        assert (tmp_path / "holes" / file).read_bytes() == (tmp_path / "converted" / file).read_bytes(), file


@pytest.mark.parametrize("name", ["small", "base"])
def test_a_quantised_conversion(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Digests are those of the bytes; values are the converter's in the rows that carry them, else 0."""
    write_holes(tmp_path / "official", small(checkpoints, name))
    convert(tmp_path / "official", tmp_path / "converted", "4bit")
    write_converted(tmp_path / "official", tmp_path / "holes", "4bit")
    assert verify(tmp_path / "holes").ok
    wanted, found = (official_tensors(tmp_path / kind) for kind in ("converted", "holes"))
    assert {key: value[:2] for key, value in wanted.items()} == {k: v[:2] for k, v in found.items()}
    manifest = read_manifest(tmp_path / "holes")
    assert {record.format for record in manifest.tensors.values()} >= {"raw", "affine4"}
    for tensor, record in manifest.tensors.items():
        for part, key in record.parts.items():
            (_, shape, theirs), (_, _, ours) = wanted[key], found[key]
            if record.format == "raw":
                assert ours == theirs, key
            elif tensor in ("embed.weight", "head.weight"):
                rows = np.frombuffer(ours, np.uint8).reshape(shape[0], -1)
                as_converted = np.frombuffer(theirs, np.uint8).reshape(shape[0], -1)
                assert np.array_equal(rows[:FIRST], as_converted[:FIRST]) and rows[:FIRST].any(), part
                assert np.array_equal(rows[-LAST:], as_converted[-LAST:]), part
                assert not rows[FIRST:-LAST].any()
            else:
                assert not any(ours), key


def test_what_carries_values(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Deterministic by seed; scales in F32 are powers of two; logits are finite and differ."""
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_holes(tmp_path / name, small(checkpoints, "base"), seed)
    one, two, other = (official_tensors(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    different = {name for name in one if one[name][2] != other[name][2]}
    alive = ("norm", "attn_sink", "hc_", ".ffn.gate.", "embed.", "head.")
    assert different == {name for name in one if any(part in name for part in alive)}
    for name, (dtype, _, data) in one.items():
        if dtype == "F32" and name.endswith(".scale"):
            assert set(np.frombuffer(data, "<f4")) == {np.float32(2.0**-127)}
        elif name not in different:
            assert not any(data), name
    stored = find_model(tmp_path / "one")
    model = assemble(stored, stored.arrays(lambda count: None), REFERENCE, EXACT)
    logits = np.array(model(mx.array([[0, 5, 300, 1270]]), model.new_state()))
    assert np.isfinite(logits).all() and logits.std() > 0


def check_headers(folder: Path) -> tuple[int, int, int]:
    """As the library reads them, which compares them with the sizes of the files; and the index.

    Tensors, their bytes, shards.
    """
    table = inventory(ModelConfig.read(folder))
    expected = {t.name: (t.dtypes[0], list(t.shape)) for t in table.tensors()}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    for number, (path, weights) in enumerate(zip(shards, table.shards(), strict=True), 1):
        assert path.name == f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        names = {tensor.name for weight in weights for tensor in weight.tensors()}
        with safe_open(path, "np") as file:
            assert set(file.keys()) == names
        with path.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
        assert all((e["dtype"], e["shape"]) == expected[n] for n, e in header.items() if n in names)
        assert all(index["weight_map"][name] == path.name for name in names)
    total = sum(tensor.bytes for tensor in table.tensors())
    assert index["metadata"]["total_size"] == total and index["weight_map"].keys() == expected.keys()
    return len(expected), total, len(shards)


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """V4-Flash, all of it: official and converted."""
    place = tmp_path_factory.mktemp("flash")
    folders = {name: place / name for name in ("official", "native")}
    write_holes(folders["official"], release_config("flash", true_size=True))
    write_converted(folders["official"], folders["native"])
    return folders


def test_headers_are_the_release_s(flash: dict[str, Path]) -> None:
    assert check_headers(flash["official"]) == (69_187, 159_609_485_896, 46)  # as published


@pytest.mark.parametrize("kind", ["official", "native"])
def test_all_of_flash_on_little_disk(kind: str, flash: dict[str, Path]) -> None:
    assert disk(flash[kind]) < DISK
    assert sum(path.stat().st_size for path in flash[kind].iterdir()) > 159e9


@pytest.mark.parametrize("kind", ["official", "native"])
def test_commands_take_it_for_whole(kind: str, flash: dict[str, Path], capsys: Output) -> None:
    folder = str(flash[kind])
    assert run(["info", folder, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["checkpoint"], facts["recipe"]) == ("april", kind)
    assert (facts["architecture"]["layers"], facts["architecture"]["experts"]) == (43, 256)
    assert facts["bytes"]["components"]["routed experts"] > 140e9
    assert run(["plan", folder, "--for", "256GB", "--json"]) == 0
    options = {o["name"]: o for o in json.loads(capsys.readouterr().out)["options"]}
    assert options.keys() == ({"official", *RECIPES} if kind == "official" else {kind})
    assert all(o["fit"]["how"] == "resident" and o["disk"]["download"] == 0 for o in options.values())
    assert options[kind]["commands"] == [f"dsv4-mlx chat {folder} --context 131072"]
    assert options[kind]["disk"]["kept"] == sum(path.stat().st_size for path in flash[kind].iterdir())


def test_doctor_beside_it(flash: dict[str, Path], capsys: Output) -> None:
    assert run(["doctor", "--dir", str(flash["native"].parent), "--json"]) == 0
    fits = {fit["name"]: fit for fit in json.loads(capsys.readouterr().out)["models"]}
    stored = sum(path.stat().st_size for path in flash["native"].glob("*.safetensors"))
    assert fits["native"]["bytes"] == stored


@pytest.mark.parametrize("kind", ["official", "native"])
def test_opens_with_every_expert_in_memory(kind: str, flash: dict[str, Path]) -> None:
    """Up to evaluation: every tensor is there once, of the right shape, and 160 GB of banks are views."""
    stored = find_model(flash[kind])
    before = mx.get_active_memory()
    # A converted folder's arrays are lazy; reading an official one is what checks it.
    arrays = BlankArrays(stored) if kind == "official" else stored.arrays(lambda count: None)
    model = assemble(stored, arrays, REFERENCE, EXACT)
    for block in (*model.blocks, *(draft.block for draft in model.drafts)):
        assert isinstance(block.ffn.experts, ResidentExperts)
        assert block.ffn.experts.gate_up.codes.shape == (256, 2 * 2048, 4096 // 8)
        assert block.ffn.experts.down.codes.shape == (256, 4096, 2048 // 8)
    assert (len(model.blocks), len(model.drafts)) == (43, 1)
    assert mx.get_active_memory() - before < 100e6


def test_the_command(tmp_path: Path, capsys: Output) -> None:
    small = ["--like", "flash", "--layers", "3", "--experts", "8"]
    assert main([str(tmp_path / "official"), *small, "--holes"]) == 0
    assert main([str(tmp_path / "4bit"), *small, "--holes", "--recipe", "4bit"]) == 0
    assert "3 layers, 8 experts" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4bit", "official"]
    assert find_model(tmp_path / "official").manifest.recipe == "official"
    assert read_manifest(tmp_path / "4bit").recipe == "4bit"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "native"], "--recipe needs --holes"),
        (["--holes", "--recipe", "5bit"], "no recipe '5bit'"),
    ],
)
def test_the_command_refuses(words: list[str], says: str, tmp_path: Path, capsys: Output) -> None:
    assert main([str(tmp_path / "x"), *words]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "x").exists()
