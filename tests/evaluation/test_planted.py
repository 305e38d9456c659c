"""Planted damage is found and named: by the digests, and by something else where they were made anew.

One who changes weights and makes the digests anew leaves a folder that is as good as another model: only the
official checkpoint tells, by `--against`. Numbers that every release shares, kernels, and weights that are no
numbers any more need neither.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import Checkpoints
from evaluation.acceptance_helpers import accepted, data_begin, digest_anew, offset_of, overwrite, quiet

from dsv4_mlx.checkpoint.identity import listed_digest
from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.config import CSA, HCA, WINDOW
from dsv4_mlx.evaluation.file_checks import files, numbers
from dsv4_mlx.evaluation.layers import layers, sample
from dsv4_mlx.evaluation.report import AcceptanceStep
from dsv4_mlx.ops.selftest.verdicts import Verdict
from dsv4_mlx.ops.table import REFERENCE
from dsv4_mlx.ops.types import Streams
from dsv4_mlx.weights.load import find_model


def flipped_bit(folder: Path) -> set[str]:
    file = folder / "layer-02.safetensors"
    at = offset_of(file, "layers.2.attn.wq_b.weight") + 100
    overwrite(file, at, bytes([file.read_bytes()[at] ^ 8]))
    return {"layer-02.safetensors layers.2.attn.wq_b.weight"}


def wrong_scale(folder: Path) -> set[str]:
    file = folder / "layer-02.safetensors"
    at = offset_of(file, "layers.2.attn.wq_b.scales")
    overwrite(file, at, bytes([(file.read_bytes()[at] + 1) % 255]))
    return {"layer-02.safetensors layers.2.attn.wq_b.weight"}


def swapped_experts(folder: Path) -> set[str]:
    table = read_manifest(folder).experts["layers.3"]
    file, size = folder / table.file, table.record_bytes
    begin = data_begin(file)
    data = file.read_bytes()
    overwrite(file, begin, data[begin + size : begin + 2 * size] + data[begin : begin + size])
    return {f"{table.file} layers.3.ffn.experts.{i}" for i in (0, 1)}


@pytest.mark.parametrize("damage", [flipped_bit, wrong_scale, swapped_experts])
def test_changed_weights(damage: Callable[[Path], set[str]], copy: Path, checkpoints: Checkpoints) -> None:
    named = damage(copy)
    found = accepted(copy)
    assert found["files"].ok is False
    assert {line.split(":")[0] for line in found["files"].found} == named
    assert "layers" not in found
    digest_anew(copy)
    assert checked(copy).ok is True
    step = checked(copy, checkpoints.official("small"))
    assert {line.split(":")[0] for line in step.found} == named
    assert all("differs from the official tensor" in line for line in step.found)


def checked(folder: Path, against: Path | None = None) -> AcceptanceStep:
    return files(folder, find_model(folder).manifest, against, quiet)


def test_nothing_is_found_against_the_source(checkpoints: Checkpoints, copy: Path) -> None:
    digest_anew(copy)  # to the same digests
    found = checked(copy, checkpoints.official("small"))
    assert (found.ok, found.told) == (True, ("every value is the official one",))


def test_weights_that_are_no_numbers(copy: Path) -> None:
    """A scale of NaN needs no digest: its layer gives no numbers, and then neither do the logits."""
    file = copy / "layer-02.safetensors"
    overwrite(file, offset_of(file, "layers.2.attn.wq_b.scales"), b"\xff" * 4)
    digest_anew(copy)
    found = accepted(copy)
    assert found["files"].ok is True
    assert {line.split(":")[0] for line in found["layers"].found} == {"layer 2, prefill", "layer 2, decode"}
    assert found["cuts"].ok is False
    json.dumps(found["layers"].figures, allow_nan=False)


@pytest.mark.parametrize("key", ["rope_theta", "compress_rope_theta"])
def test_a_wrong_rope_base(key: str, copy: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Its digest differs; made anew, or in an official folder, the number itself tells, or the source."""
    official = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "official"))
    for folder in (copy, official):
        config = json.loads((folder / "config.json").read_text())
        config[key] *= 2
        (folder / "config.json").write_text(json.dumps(config))
    found = accepted(copy)
    assert any("config.json" in line for line in found["files"].found)
    assert found["numbers"].found[0].startswith(f"{key} is ")
    digest_anew(copy)
    assert checked(copy).found == ("manifest.json: what it says of its source contradicts itself",)
    for folder in (copy, official):
        step = numbers(find_model(folder).config)
        assert step.ok is False
        assert step.found[0].startswith(f"{key} is ")
    step = checked(copy, checkpoints.official("small"))
    assert step.found[-1] == "config.json: is not the file that was copied from the source"


def wrong(streams: Streams) -> mx.array:
    return REFERENCE.hc_post(streams) * 1.001


@pytest.mark.usefixtures("short_cuts")
def test_a_wrong_kernel(checkpoints: Checkpoints) -> None:
    """The check of kernels names it; and should it have missed it, every layer shows it."""
    verdict = Verdict("hc_post", "differs", "2 rows: 7 of 8 values differ")
    found = accepted(checkpoints.converted("small"), verdicts=(verdict,))
    assert found["kernels"].found == (
        "hc_post gives other values than its reference: 2 rows: 7 of 8 values differ",
    )
    stored = find_model(checkpoints.converted("small"))
    step = layers(stored, replace(REFERENCE, hc_post=wrong), None, quiet)
    assert step.ok is False
    assert {line.split(",")[0] for line in step.found} == {f"layer {i}" for i in range(stored.config.layers)}


def test_each_kind_of_layer_is_in_the_sample(checkpoints: Checkpoints) -> None:
    config = checkpoints.parsed("flash")
    chosen = sample(config)
    assert {config.kind(i) for i in chosen} == {WINDOW, CSA, HCA}
    assert {config.hashed(i) for i in chosen} == {True, False}
    assert config.layers - 1 in chosen


def downloaded(checkpoints: Checkpoints, folder: Path, how: str) -> Path:
    """An official folder as the Hub's client leaves it: with files of digests, or links into its cache."""
    shutil.copytree(checkpoints.official("small"), folder)
    notes, blobs = folder / ".cache/huggingface/download", folder.parent.with_name("blobs")
    notes.mkdir(parents=True)
    blobs.mkdir()
    for file in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if how == "notes":
            (notes / f"{file.name}.metadata").write_text(f"{'0' * 40}\n{digest}\n1.0\n")
        else:
            shutil.move(file, blobs / digest)
            file.symlink_to(blobs / digest)
    return folder


@pytest.mark.parametrize("how", ["notes", "links"])
def test_a_flipped_bit_in_a_downloaded_checkpoint(how: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = downloaded(checkpoints, tmp_path / "snapshots" / "official", how)
    file = sorted(folder.glob("*.safetensors"))[1]
    assert listed_digest(folder, file.name)
    assert listed_digest(folder, "config.json") is None
    assert checked(folder).ok is True
    overwrite(file, data_begin(file) + 100, bytes([file.read_bytes()[data_begin(file) + 100] ^ 1]))
    found = accepted(folder)
    assert found["files"].found == (
        f"{file.name}: is not the file that the Hub lists; dsv4-mlx download ORG/NAME FOLDER --verify",
    )
    assert "layers" not in found


def test_a_digest_that_is_missing_hides_no_damage(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = downloaded(checkpoints, tmp_path / "official", "notes")
    first, second, *rest = sorted(folder.glob("*.safetensors"))
    (folder / f".cache/huggingface/download/{first.name}.metadata").write_text("damaged")
    step = checked(folder)
    assert step.ok is None
    assert step.found[0].startswith(f"of 1 of {2 + len(rest)} files the Hub's digests are not here")
    overwrite(second, data_begin(second), bytes([second.read_bytes()[data_begin(second)] ^ 1]))
    step = checked(folder)
    assert step.ok is False
    assert [line.split(":")[0] for line in step.found] == [second.name]
