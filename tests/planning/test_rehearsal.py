"""What `plan` says of a conversion before it, against the conversion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoints

from dsv4_mlx.checkpoint.inventory import inventory
from dsv4_mlx.cli.main import run
from dsv4_mlx.convert.conversion_plan import make_plan
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.trial import BytesWritten, ConversionThroughput, bytes_written, rehearse
from dsv4_mlx.planning import rehearsal
from dsv4_mlx.planning.candidates import flash_config
from dsv4_mlx.planning.rehearsal import throughput_here
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint

RUNS = 5
SPEEDS = ["--bandwidth", "400GB", "--disk", "5GB"]  # so that only the conversion is measured


def test_seconds_follow_from_amounts() -> None:
    throughput = ConversionThroughput(opening=2.0, copied=100.0, quantised=10.0, memory={})
    assert BytesWritten(copied=1000, quantised=50).seconds(throughput) == 2 + 10 + 5
    assert BytesWritten(copied=1000, quantised=0).seconds(ConversionThroughput(0.0, 100.0, None, {})) == 10


def test_amounts_are_all_of_the_plan() -> None:
    table = inventory(flash_config())
    for recipe in RECIPES.values():
        plan = make_plan(table, recipe)
        found = bytes_written(plan)
        assert found.copied + found.quantised == plan.bytes
        assert (found.quantised > 0) == (recipe.name == "4bit")


def test_a_rehearsal_leaves_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for recipe in RECIPES:
        trial = rehearse(checkpoints.official("small"), tmp_path, 0.1, recipe)
        assert trial.rate is not None and trial.rate > 0
        assert list(tmp_path.iterdir()) == []
        assert trial.memory > 10 << 20


def test_what_can_not_be_measured_is_said(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: Any) -> None:
    official = checkpoints.official("small")
    assert "GiB are free" in str(throughput_here(official, tmp_path / "absent", 0.1))
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "free_bytes", lambda place: 10)
        assert "GiB are free" in str(throughput_here(official, tmp_path, 0.1))
    damaged = shutil.copytree(official, tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    assert "config.json" in str(throughput_here(damaged, tmp_path, 0.1))


def test_plan_says_it(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput_here, "__defaults__", (0.2, "dsv4_mlx.convert"))
    words = ["plan", str(checkpoints.official("small")), "--dir", str(tmp_path / "a b" / "c"), *SPEEDS]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    making = {option["name"]: option["making"] for option in found["options"]}
    assert making["official"] is None and making["native"]["seconds"] > 0 < making["4bit"]["memory"]
    assert found["calibration"]["copied"] > 0
    assert run(words) == 0
    said = capsys.readouterr()
    assert "memory at most" in said.out and "they are deleted" in said.err and f"'{tmp_path}/a b" in said.out
    assert list(tmp_path.iterdir()) == []
    assert run(["plan", str(checkpoints.converted("small")), "--dir", str(tmp_path), *SPEEDS]) == 0
    assert "nothing is converted" in capsys.readouterr().out
    assert run([*words, "--for", "64GB"]) == 0
    assert "for another machine" in capsys.readouterr().out


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_stopped_it_leaves_nothing(sent: signal.Signals, tmp_path: Path) -> None:
    """Without MODEL: a made-up layer of 0.4 GB is being written, or converted."""
    command = [sys.executable, "-m", "dsv4_mlx", "plan", "--dir", str(tmp_path), *SPEEDS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic() + 60
    while not any(tmp_path.glob(".dsv4-mlx-*")) and process.poll() is None:
        assert time.monotonic() < waited
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent], said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def watched(command: list[str]) -> tuple[str, int]:
    """What a process printed, and the most memory that the system says it held, mapped files included."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = status.partition("VmHWM:")[2].split()
        most = max(most, int(peak[0]) * 1024 if peak else 0)
        time.sleep(0.01)
    out, _ = process.communicate()
    assert process.returncode == 0
    return out, most


@pytest.fixture(scope="module", params=[("flash", 256), ("base", 128)], ids=["flash", "base"])
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A layer at its true widths: 3.6 GB."""
    folder = tmp_path_factory.mktemp("layer")
    release, experts = request.param
    config = cut(release_config(release, true_size=True), layers=1, experts=experts)
    config |= {"num_nextn_predict_layers": 0, "compress_ratios": [0], "vocab_size": 4096}
    write_checkpoint(folder / "official", config)
    yield folder / "official"
    shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_against_a_true_size_layer(
    recipe: str, layer: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Disk to the byte, memory within 10 %, time within 30 %: medians of runs in turn."""
    predicted, taken, planned, held = [], [], [], []
    for _ in range(RUNS):
        words = [sys.executable, "-m", "dsv4_mlx", "plan", str(layer), "--dir", str(tmp_path), "--json"]
        said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        option = next(option for option in said["options"] if option["name"] == recipe)
        target = tmp_path / "out"
        words = [sys.executable, "-m", "dsv4_mlx", "convert", str(layer), str(target), "--json"]
        out, most = watched([*words, "--recipe", recipe])
        assert option["disk"]["kept"] == sum(path.stat().st_size for path in target.iterdir())
        shutil.rmtree(target)
        predicted.append(option["making"]["seconds"])
        planned.append(option["making"]["memory"])
        taken.append(json.loads(out)["seconds"])
        held.append(most)
    for name, values in (("predicted", predicted), ("seconds", taken)):
        record_property(name, " ".join(f"{value:.1f}" for value in values))
    for name, values in (("planned MB", planned), ("held MB", held)):
        record_property(name, " ".join(f"{value / 1e6:.0f}" for value in values))
    assert abs(statistics.median(planned) / statistics.median(held) - 1) <= 0.10
    assert abs(statistics.median(predicted) / statistics.median(taken) - 1) <= 0.30
    assert os.listdir(tmp_path) == []
