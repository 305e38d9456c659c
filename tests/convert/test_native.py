"""`native` loses nothing: every official tensor, decoded independently on both sides, is bit-identical."""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint.decoding import RawFile, mx_values, official_tensors, official_values, same_bits
from safetensors import safe_open

from dsv4_mlx.checkpoint.manifest import ALIGNMENT, SEGMENTS, Manifest, read_manifest
from dsv4_mlx.convert.run import convert

NAMES = ("small", "awkward", "base", "awkward base", "0731", "pro")
Folder = Callable[[str], Path]


BITS = {"mxfp4": 4, "mxfp8": 8}


def experts_of(manifest: Manifest, folder: Path) -> dict[str, tuple[bytes, bytes, tuple[int, int]]]:
    """official weight name -> its codes, scales and shape, cut out of the records."""
    found: dict[str, tuple[bytes, bytes, tuple[int, int]]] = {}
    for prefix, table in manifest.experts.items():
        data = RawFile(folder / table.file).tensors["experts"][2]
        segments = {segment.name: segment for segment in table.segments}
        for expert in range(table.count):
            record = data[expert * table.record_bytes : (expert + 1) * table.record_bytes]
            for matrix, part in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
                codes, scales = segments[f"{part}_codes"], segments[f"{part}_scales"]
                assert codes.dtype == "U32" and scales.dtype == "U8"
                shape = (codes.shape[0], codes.shape[1] * 32 // BITS[table.format])
                assert scales.shape == (shape[0], shape[1] // 32)
                found[f"{prefix}.ffn.experts.{expert}.{matrix}.weight"] = (
                    record[codes.offset : codes.offset + codes.bytes],
                    record[scales.offset : scales.offset + scales.bytes],
                    shape,
                )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_decodes_bit_identically(name: str, checkpoints: Folder, tmp_path: Path) -> None:
    source, target = checkpoints(name), tmp_path / "target"
    summary = convert(source, target)
    official = official_tensors(source)
    assert summary.tensors == len(official)
    manifest = read_manifest(target)
    files = {file: RawFile(target / file) for file in {r.file for r in manifest.tensors.values()}}
    experts = experts_of(manifest, target)
    unseen = set(official)
    for weight, record in manifest.tensors.items():
        stored = {part: files[record.file].tensors[key] for part, key in record.parts.items()}
        expected = official_values(official, weight)
        if record.format == "raw":
            assert stored["weight"] == expected, weight
        else:
            assert record.format == "mxfp8" and len(record.shape) == 2
            rows, columns = record.shape
            actual = mx_values(stored["weight"][2], stored["scales"][2], (rows, columns), 8)
            assert same_bits(actual, expected), weight
            unseen.remove(weight[: -len("weight")] + "scale")
        unseen.remove(weight)
    bits = 8 if "base" in name else 4
    assert {BITS[table.format] for table in manifest.experts.values()} == {bits}
    for weight, (codes, scales, shape) in experts.items():
        assert same_bits(mx_values(codes, scales, shape, bits), official_values(official, weight)), weight
        unseen -= {weight, weight[: -len("weight")] + "scale"}
    assert not unseen


def test_mlx_reads_the_same_values(checkpoints: Folder, tmp_path: Path) -> None:
    """MLX's own dequantisation of what is stored equals the official values exactly."""
    source, target = checkpoints("awkward"), tmp_path / "target"
    convert(source, target)
    official = official_tensors(source)
    manifest = read_manifest(target)
    for weight, record in manifest.tensors.items():
        if record.format == "mxfp8":
            arrays: Any = mx.load(str(target / record.file))
            codes, scales = (arrays[record.parts[part]] for part in ("weight", "scales"))
            values = mx.dequantize(codes, scales, mode="mxfp8", group_size=32, bits=8, dtype=mx.float32)
            assert np.array_equal(np.array(values, dtype=np.float64), official_values(official, weight)), (
                weight
            )
    name, (words, steps, shape) = next(iter(experts_of(manifest, target).items()))
    codes = mx.array(np.frombuffer(words, dtype=np.uint32).reshape(shape[0], -1))
    scales = mx.array(np.frombuffer(steps, dtype=np.uint8).reshape(shape[0], -1))
    values = mx.dequantize(codes, scales, mode="mxfp4", group_size=32, bits=4, dtype=mx.float32)
    assert np.array_equal(np.array(values, dtype=np.float64), official_values(official, name))


@pytest.mark.parametrize("recipe", ["native", "4bit"])
@pytest.mark.parametrize("name", ["awkward", "base"])
def test_layout_is_what_the_manifest_says(
    name: str, recipe: str, checkpoints: Folder, tmp_path: Path
) -> None:
    source, target = checkpoints(name), tmp_path / "target"
    convert(source, target, recipe)
    manifest = read_manifest(target)
    assert manifest.recipe == recipe and manifest.checkpoint == "april"
    present = {path.name: path.stat().st_size for path in target.iterdir() if path.name != "manifest.json"}
    assert present == manifest.files
    for text in ("config.json", "tokenizer.json", "generation_config.json"):
        assert filecmp.cmp(source / text, target / text, shallow=False)
    for file in (name for name in present if name.endswith(".safetensors")):
        raw = RawFile(target / file)
        assert raw.data_start % ALIGNMENT == 0
        with safe_open(target / file, "np") as opened:
            assert set(opened.keys()) == set(raw.tensors)
        assert set(mx.load(str(target / file))) == set(raw.tensors)
    listed: dict[str, set[str]] = {}
    for record in manifest.tensors.values():
        tensors = RawFile(target / record.file).tensors
        listed.setdefault(record.file, set()).update(record.parts.values())
        assert record.parts.keys() == record.digests.keys()
        for part, key in record.parts.items():
            assert hashlib.sha256(tensors[key][2]).hexdigest() == record.digests[part]
    for file, keys in listed.items():
        assert set(RawFile(target / file).tensors) == keys
    for table in manifest.experts.values():
        raw = RawFile(target / table.file)
        dtype, shape, data = raw.tensors["experts"]
        assert dtype == "U32" and shape == [table.count, table.record_bytes // 4]
        assert table.record_bytes % ALIGNMENT == 0
        affine = name == "base" and recipe == "4bit"
        assert [s.name for s in table.segments] == [n for n in SEGMENTS if affine or "biases" not in n]
        for expert, digest in enumerate(table.digests):
            record_bytes = data[expert * table.record_bytes : (expert + 1) * table.record_bytes]
            assert hashlib.sha256(record_bytes).hexdigest() == digest


def test_a_true_record_needs_no_padding() -> None:
    from dsv4_mlx.checkpoint.inventory import inventory
    from dsv4_mlx.config import parse_config
    from dsv4_mlx.convert.conversion_plan import make_plan
    from dsv4_mlx.convert.recipe import find_recipe
    from dsv4_mlx.synthetic import release_config

    config = parse_config(json.dumps(release_config("flash", true_size=True)), "flash")
    plan = make_plan(inventory(config), find_recipe("native"))
    records = next(file.records for file in plan.files if file.records)
    assert records.record_bytes == 13_369_344
    assert sum(segment.bytes for segment in records.segments) == records.record_bytes
    assert 159.6e9 < plan.bytes < 159.9e9
    assert plan.kept == ()


@pytest.mark.parametrize("recipe", ["native", "4bit"])
@pytest.mark.parametrize("name", ["awkward", "base"])
def test_same_bytes_whatever_the_block(name: str, recipe: str, checkpoints: Folder, tmp_path: Path) -> None:
    source = checkpoints(name)
    convert(source, tmp_path / "a", recipe)
    convert(source, tmp_path / "b", recipe, block=4096)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])


def test_identity_tells_seeds_apart(tmp_path: Path) -> None:
    from dsv4_mlx.checkpoint.identity import identify
    from dsv4_mlx.checkpoint.source import open_source
    from dsv4_mlx.synthetic import small_config, write_checkpoint

    for seed in (0, 1):
        write_checkpoint(tmp_path / str(seed), small_config(), seed)
    first, second = (identify(open_source(tmp_path / str(seed))) for seed in (0, 1))
    assert [s["header"] for s in first["shards"].values()] == [s["header"] for s in second["shards"].values()]
    assert first["identity"] != second["identity"]
    assert first == identify(open_source(tmp_path / "0"))


def test_samples_reach_both_ends() -> None:
    from dsv4_mlx.checkpoint.identity import PIECE, SAMPLES, sample_points

    assert sample_points(10, 20) == [10]
    points = sample_points(100, 10**9)
    assert len(points) == SAMPLES and points[0] == 100 and points[-1] + PIECE == 10**9


def test_progress_counts_every_byte(checkpoints: Folder, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    summary = convert(checkpoints("small"), tmp_path / "t", progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done) and done[-1] == summary.bytes == seen[-1][1]
    sizes = sum(path.stat().st_size for path in (tmp_path / "t").glob("*.safetensors"))
    assert sizes == summary.bytes == summary.bytes_written
    assert json.loads(json.dumps(summary.to_json()))["status"] == "converted"
