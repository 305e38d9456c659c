"""`verify` proves a good model, and finds and locates every kind of damage."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint.damage import poke
from checkpoint.decoding import official_tensors, official_values

from dsv4_mlx.checkpoint.identity import identify
from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.checkpoint.source import open_source
from dsv4_mlx.convert.run import convert
from dsv4_mlx.convert.verify import verify
from dsv4_mlx.errors import InputError

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def converted(
    checkpoints: Folder, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, Path]]:
    """(checkpoint, recipe) -> source and target; read only."""
    home = tmp_path_factory.mktemp("converted")

    def folders(name: str, recipe: str) -> tuple[Path, Path]:
        target = home / f"{name}-{recipe}"
        if not target.exists():
            convert(checkpoints(name), target, recipe)
        return checkpoints(name), target

    return folders


Converted = Callable[[str, str], tuple[Path, Path]]


@pytest.mark.parametrize("name", ["small", "awkward", "base", "awkward base", "0731", "pro"])
def test_native_is_lossless(name: str, converted: Converted) -> None:
    source, target = converted(name, "native")
    alone = verify(target)
    assert alone.ok and alone.lossless is None and alone.errors == {}
    report = verify(target, source, block=4096)
    assert report.ok and report.lossless and report.damage == ()
    assert report.expert_records + report.weights > 100
    assert {part for part, error in report.errors.items() if error.relative == 0} == set(report.parts)
    assert json.loads(json.dumps(report.to_json()))["lossless"] is True


def exact_errors(source: Path, target: Path) -> dict[str, tuple[float, float]]:
    """official name -> relative RMS and worst error of every affine4 weight, as MLX decodes it."""
    official = official_tensors(source)
    found: dict[str, tuple[float, float]] = {}
    for weight, record in read_manifest(target).tensors.items():
        if record.format == "affine4":
            arrays: Any = mx.load(str(target / record.file))
            assert arrays[record.parts["scales"]].dtype == mx.bfloat16
            codes, scales, biases = (arrays[record.parts[part]] for part in ("weight", "scales", "biases"))
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            decoded = mx.dequantize(codes, scales, biases, group_size=64, bits=4)
            values = np.array(decoded, dtype=np.float64)
            expected = official_values(official, weight)
            if isinstance(expected, tuple):
                bits = np.frombuffer(expected[2], dtype=np.uint16).astype(np.uint32) << 16
                expected = bits.view(np.float32).astype(np.float64).reshape(expected[1])
            error = np.abs(values - expected)
            found[weight] = (
                float(np.sqrt((error**2).sum() / (expected**2).sum())),
                float(error.max() / np.abs(expected).max()),
            )
    return found


@pytest.mark.parametrize("name", ["small", "0731"])
def test_4bit_errors_are_what_mlx_computes(name: str, converted: Converted) -> None:
    source, target = converted(name, "4bit")
    report = verify(target, source, block=4096)
    assert report.ok and report.lossless is False
    measured = exact_errors(source, target)
    parts = {"attention": ".attn.w", "shared": "shared_experts", "indexer": "indexer.wq_b"}
    parts |= {"embedding": "embed.weight", "head": "head.weight"}
    for part, fragment in parts.items():
        mine = {name: error for name, error in measured.items() if fragment in name}
        assert mine, part
        worst = max(mine, key=lambda name: mine[name])
        assert report.errors[part].weight == worst
        assert report.errors[part].relative == pytest.approx(mine[worst][0], rel=1e-5)
        assert report.errors[part].relative_worst == pytest.approx(max(e[1] for e in mine.values()), rel=1e-5)
        assert 0.05 < report.errors[part].relative < 0.12  # 4 bits over the range of 64 normal values
    kept = set(report.parts) - set(parts)
    assert all(report.errors[part].relative_worst == 0 for part in kept)
    assert {"experts", "router", "hyper", "compressor", "norm", "sink", "draft"} <= kept


def test_4bit_keeps_what_it_cannot_divide(checkpoints: Folder, tmp_path: Path) -> None:
    """Widths that 64 doesn't divide stay native, visibly."""
    source, target = checkpoints("awkward"), tmp_path / "target"
    summary = convert(source, target, "4bit")
    formats = {name: record.format for name, record in read_manifest(target).tensors.items()}
    kept = set(summary.kept)
    assert {"embed.weight", "head.weight", "layers.0.attn.wq_a.weight"} <= kept  # 160 columns
    assert "layers.1.attn.indexer.wq_b.weight" in kept  # 96 columns
    assert all(formats[name] in ("raw", "mxfp8") for name in kept)
    quantised = {name for name, form in formats.items() if form == "affine4"}
    assert quantised == set()
    assert convert(checkpoints("small"), tmp_path / "small", "4bit").kept == ()


def test_4bit_costs(converted: Converted) -> None:
    _, target = converted("small", "4bit")
    parts = verify(target).parts
    for part in ("attention", "shared", "embedding", "head"):
        assert set(parts[part].formats) == {"affine4"}
    assert parts["indexer"].formats == {"affine4": 3, "raw": 3}
    assert parts["experts"].formats == {"mxfp4": 64 * 3}
    assert parts["draft"].formats == {"mxfp8": 2}
    assert parts["embedding"].bytes == 640 * 128 * 4.5 / 8
    for part in ("router", "hyper", "compressor", "norm", "sink"):
        assert parts[part].bytes == parts[part].official_bytes


# --- damage ---------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def data_offset(path: Path, key: str) -> int:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return int(8 + length + json.loads(data[8 : 8 + length])[key]["data_offsets"][0])


@pytest.fixture
def model(converted: Converted, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted("small", "native")[1], tmp_path / "model"))


@pytest.mark.parametrize(
    ("file", "key", "weight", "says"),
    [
        (
            "layer-03.safetensors",
            "layers.3.attn.wkv.weight",
            "layers.3.attn.wkv.weight",
            "the weight are not",
        ),
        (
            "layer-03.safetensors",
            "layers.3.attn.wkv.scales",
            "layers.3.attn.wkv.weight",
            "the scales are not",
        ),
        ("embed.safetensors", "embed.weight", "embed.weight", "not the bytes that were written"),
        (
            "mtp-0.safetensors",
            "mtp.0.hc_head_scale",
            "mtp.0.hc_head_scale",
            "not the bytes that were written",
        ),
        ("layer-05.experts.safetensors", "experts", "layers.5.ffn.experts.0", "the record is not the bytes"),
    ],
)
def test_one_flipped_bit(file: str, key: str, weight: str, says: str, model: Path) -> None:
    flip(model / file, data_offset(model / file, key) + 3)
    (damage,) = verify(model).damage
    assert (damage.file, damage.tensor) == (file, weight) and says in damage.what


def test_a_bit_in_the_last_expert(model: Path) -> None:
    path = model / "layer-05.experts.safetensors"
    flip(path, path.stat().st_size - 1)  # padding of record 7
    assert [damage.tensor for damage in verify(model).damage] == ["layers.5.ffn.experts.7"]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("truncated", lambda m: os.truncate(m / "layer-02.safetensors", 20_000), "truncated"),
        ("empty", lambda m: os.truncate(m / "layer-02.safetensors", 0), "too few"),
        ("missing", lambda m: (m / "layer-02.safetensors").unlink(), "is missing"),
        ("header", lambda m: flip(m / "layer-02.safetensors", 9), "damaged"),
        ("tokenizer", lambda m: flip(m / "tokenizer.json", 50), "not the file that was copied"),
        (
            "config",
            lambda m: edit(m / "config.json", lambda c: c.update(rope_theta=5)),
            "not the file that was",
        ),
        (
            "format",
            lambda m: edit(
                m / "manifest.json", lambda j: j["tensors"]["layers.0.attn.wkv.weight"].update(format="mxfp4")
            ),
            "not described as",
        ),
        (
            "unknown tensor",
            lambda m: edit(
                m / "manifest.json", lambda j: j["tensors"].update(x=j["tensors"]["embed.weight"])
            ),
            "unknown",
        ),
        (
            "missing tensor",
            lambda m: edit(m / "manifest.json", lambda j: j["tensors"].pop("norm.weight")),
            "missing",
        ),
        (
            "missing layer",
            lambda m: edit(m / "manifest.json", lambda j: j["experts"].pop("layers.1")),
            "missing",
        ),
        (
            "digests",
            lambda m: edit(m / "manifest.json", lambda j: j["experts"]["layers.1"]["digests"].pop()),
            "not described as",
        ),
        (
            "texts",
            lambda m: edit(m / "manifest.json", lambda j: j["source"].pop("texts")),
            "digests of config",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_to_the_structure(name: str, change: Callable[[Path], object], says: str, model: Path) -> None:
    change(model)
    report = verify(model)
    assert not report.ok
    assert any(says in damage.what for damage in report.damage), report.damage


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: (m / "manifest.json").unlink(), "no manifest.json"),
        (lambda m: (m / "manifest.json").write_text("{"), "can't be read as JSON"),
        (lambda m: edit(m / "manifest.json", lambda j: j.update(recipe="3bit")), "recipe '3bit'"),
        (lambda m: edit(m / "manifest.json", lambda j: j.update(format=2)), "has format 2"),
        (lambda m: (m / "config.json").unlink(), "no config.json"),
    ],
)
def test_what_is_no_model(change: Callable[[Path], object], says: str, model: Path) -> None:
    change(model)
    with pytest.raises(InputError, match=says):
        verify(model)


def test_an_official_folder_without_digests_is_told_from_where_they_come(source: Path) -> None:
    """Errors while paging send people here."""
    with pytest.raises(
        InputError, match="the digests that the Hub lists for these files are not here"
    ) as caught:
        verify(source)
    assert f"dsv4-mlx download ORG/NAME {source}" in str(caught.value.next)


def test_against_another_source(model: Path, checkpoints: Folder) -> None:
    with pytest.raises(InputError, match="made from another checkpoint"):
        verify(model, checkpoints("awkward"))


def test_source_damaged_since(model: Path, source: Path) -> None:
    """The identity samples; a change between the samples is found by comparing. (So small a source is read
    whole, which is why the model is told the new identity here.)"""
    changed = {
        "layers.2.attn.wo_a.weight": "layers.2.attn.wo_a.weight",
        "layers.2.attn.wo_b.scale": "layers.2.attn.wo_b.weight",
        "layers.4.ffn.experts.3.w3.weight": "layers.4.ffn.experts.3",
        "layers.6.attn_norm.weight": "layers.6.attn_norm.weight",
    }
    for tensor in changed:
        poke(source, tensor, 1)
    facts = identify(open_source(source))
    edit(model / "manifest.json", lambda j: j["source"].update(facts))
    report = verify(model, source)
    assert {damage.tensor for damage in report.damage} == set(changed.values())
    assert all("the model or the source has changed" in damage.what for damage in report.damage)
    assert verify(model).ok


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(files={}), "list of files"),
        (lambda m: m["files"].update({"embed.safetensors": -1}), "list of files"),
        (lambda m: m["source"]["texts"].update({"a\0b": "x"}), "can't be read"),
    ],
)
def test_a_manifest_that_names_other_files(
    change: Callable[[dict[str, Any]], object], says: str, converted: Converted, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(converted("small", "native")[1], tmp_path / "target"))
    manifest = json.loads((target / "manifest.json").read_text())
    change(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    assert any(says in damage.what for damage in verify(target).damage)
