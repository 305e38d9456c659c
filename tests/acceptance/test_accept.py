"""`check` on small models: sound ones pass, and each planted damage is found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import Checkpoints

from dsv4_mlx.acceptance import Acceptance, Step, accept
from dsv4_mlx.acceptance.answers import cuts, long_answer
from dsv4_mlx.acceptance.layers import layers, sample
from dsv4_mlx.checking import Verdict
from dsv4_mlx.engine import Engine, EngineOptions
from dsv4_mlx.manifest import read_manifest
from dsv4_mlx.operands import Streams
from dsv4_mlx.ops import REFERENCE, Ops
from dsv4_mlx.weights.load import find_model


@contextmanager
def quiet(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def nothing(done: int, total: int) -> None:
    pass


def accepted(folder: Path, ops: Ops = REFERENCE, verdicts: tuple[Verdict, ...] = ()) -> dict[str, Step]:
    return {step.name: step for step in accept(folder, ops, verdicts, quiet, quick=True).steps}


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A converted model that may be damaged."""
    return Path(shutil.copytree(checkpoints.converted("small"), tmp_path / "model"))


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as out:
        out.seek(offset)
        out.write(data)


def data_begin(file: Path) -> int:
    with file.open("rb") as text:
        return 8 + int.from_bytes(text.read(8), "little")


def offset_of(file: Path, key: str) -> int:
    with file.open("rb") as text:
        header = json.loads(text.read(data_begin(file))[8:])
    return data_begin(file) + int(header[key]["data_offsets"][0])


def test_a_sound_model_passes(checkpoints: Checkpoints) -> None:
    found = accepted(checkpoints.converted("small"), verdicts=(Verdict("attend", "works"),))
    assert {name: (step.ok, step.found) for name, step in found.items()} == dict.fromkeys(
        ("files", "numbers", "kernels", "layers", "cuts"), (True, ())
    )
    report = json.dumps(Acceptance(tuple(found.values()), {}, True).to_json())
    assert str(checkpoints.cache) not in report


def test_an_official_checkpoint_passes(checkpoints: Checkpoints) -> None:
    found = accepted(checkpoints.official("small"))
    assert found["files"].ok is None
    assert [found[name].ok for name in ("numbers", "layers", "cuts")] == [True] * 3


def test_one_flipped_bit(copy: Path) -> None:
    file = copy / "layer-02.safetensors"
    at = offset_of(file, "layers.2.attn.wq_b.weight") + 100
    byte = file.read_bytes()[at]
    overwrite(file, at, bytes([byte ^ 8]))
    found = accepted(copy)
    assert found["files"].ok is False
    assert len(found["files"].found) == 1
    assert "layers.2.attn.wq_b" in found["files"].found[0]
    assert "layers" not in found


def test_one_wrong_scale(copy: Path) -> None:
    file = copy / "layer-02.safetensors"
    at = offset_of(file, "layers.2.attn.wq_b.scales")
    overwrite(file, at, bytes([(file.read_bytes()[at] + 1) % 255]))
    assert "layers.2.attn.wq_b" in accepted(copy)["files"].found[0]


def test_swapped_experts(copy: Path) -> None:
    table = read_manifest(copy).experts["layers.3"]
    file, size = copy / table.file, table.record_bytes
    begin = data_begin(file)
    data = file.read_bytes()
    first, second = data[begin : begin + size], data[begin + size : begin + 2 * size]
    overwrite(file, begin, second + first)
    found = accepted(copy)["files"]
    assert found.ok is False
    text = " ".join(found.found)
    assert "layers.3.ffn.experts.0" in text
    assert "layers.3.ffn.experts.1" in text


@pytest.mark.parametrize("key", ["rope_theta", "compress_rope_theta"])
def test_a_wrong_rope_base(key: str, copy: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """In a converted folder its digest differs too; in an official one only the number itself tells."""
    official = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "official"))
    for folder in (copy, official):
        config = json.loads((folder / "config.json").read_text())
        config[key] *= 2
        (folder / "config.json").write_text(json.dumps(config))
    found = accepted(copy)
    assert any("config.json" in line for line in found["files"].found)
    for step in (found["numbers"], accepted(official)["numbers"]):
        assert step.ok is False
        assert step.found[0].startswith(f"{key} is ")


def wrong(streams: Streams) -> mx.array:
    return REFERENCE.hc_post(streams) * 1.001


def test_a_wrong_kernel(checkpoints: Checkpoints) -> None:
    """The check of kernels names it; and should it have missed it, every layer shows it."""
    verdict = Verdict("hc_post", "differs", "2 rows: 7 of 8 values differ")
    found = accepted(checkpoints.converted("small"), verdicts=(verdict,))
    assert found["kernels"].found == (
        "hc_post gives other values than its reference: 2 rows: 7 of 8 values differ",
    )
    stored = find_model(checkpoints.converted("small"))
    step = layers(stored, replace(REFERENCE, hc_post=wrong), range(stored.config.layers), nothing)
    assert step.ok is False
    assert {line.split(",")[0] for line in step.found} == {f"layer {i}" for i in range(stored.config.layers)}


def test_each_kind_of_layer_is_in_the_sample(checkpoints: Checkpoints) -> None:
    config = checkpoints.parsed("flash")
    chosen = sample(config)
    assert {config.ratio(i) for i in chosen} == {0, 4, 128}
    assert {config.hashed(i) for i in chosen} == {True, False}
    assert config.layers - 1 in chosen


def leaning(streams: Streams) -> mx.array:
    """An op whose result depends on how many tokens are in a chunk."""
    x = REFERENCE.hc_post(streams)
    return x * (1 + 1e-3 * (x.shape[1] % 5))


def test_cuts_that_matter_are_found(checkpoints: Checkpoints) -> None:
    ops = replace(
        REFERENCE, hc_pre=lambda streams, *a, **k: REFERENCE.hc_pre(Streams(leaning(streams)), *a, **k)
    )
    engine = Engine.open(checkpoints.converted("small"), EngineOptions(512, "exact", ops))
    step = cuts(engine)
    assert step.ok is False
    assert "cut every 97 tokens" in step.found[0]


def test_a_long_answer(checkpoints: Checkpoints) -> None:
    engine = Engine.open(checkpoints.converted("small"), EngineOptions(64, "exact"))
    step = long_answer(engine, 1000, nothing)
    assert step.ok is True
    assert step.figures["tokens"] == 63

    def silent(*arguments: object, **options: object) -> mx.array:
        return mx.zeros((1, 1, engine.config.hidden_size))

    broken = Engine.open(
        checkpoints.converted("small"), EngineOptions(64, "exact", replace(REFERENCE, hc_head=silent))
    )
    step = long_answer(broken, 10, nothing)
    assert step.ok is False


def test_the_command(copy: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    overwrite(copy / "head.safetensors", offset_of(copy / "head.safetensors", "head.weight"), b"\x01\x02\x03")
    command = [sys.executable, "-m", "dsv4_mlx", "check", str(copy), "--quick", "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "files: WRONG" in done.stdout
    assert "head.weight" in done.stdout
    assert done.stderr.splitlines()[-2].startswith("error: this model is not accepted here: files")
    written = json.loads(report.read_text())
    assert written["ok"] is False
    assert str(tmp_path) not in report.read_text()
