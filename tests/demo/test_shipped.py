"""`demo` as MODEL, and the checkpoint that the package carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4_mlx.cli.demo import MODEL_ID, SHIPPED, build, trained
from dsv4_mlx.cli.sources import model_folder
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.manifest import read_manifest

shipped = pytest.mark.skipif(not trained(), reason="this tree carries no trained weights")


def test_demo_is_a_model_and_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a folder named demo here would be taken instead
    folder = model_folder("demo")
    assert folder.name == MODEL_ID
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert model_folder("demo") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert read_manifest(folder).recipe == "native"


def test_damage_is_found_and_repaired(tmp_path: Path) -> None:
    model = build(tmp_path).model
    victim = next(path for path in sorted(model.iterdir()) if path.suffix == ".safetensors")
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    again = build(tmp_path)
    assert not again.reused and victim.read_bytes() == good


@shipped
def test_the_shipped_checkpoint_has_the_whole_architecture_in_eight_megabytes() -> None:
    config = ModelConfig.read(SHIPPED)
    assert {0, 4, 128} == set(config.ratios) and config.mtp_layers == 1
    assert 0 < config.hash_layers < config.layers and config.streams == 4
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8_000_000
