"""The rehearsal on a GPU, tried on the CPU: each part's figures, a part that failed, and no GPU at all."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from bench import gpu_rehearsal
from bench.gpu_rehearsal import STEPS, layers, main, memory, products, run, threads
from dsv4_mlx.synthetic import cut, small_config

CPU = mx.Device(mx.cpu)


def test_without_a_gpu_it_says_so_and_ends(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert not mx.cuda.is_available()
    assert main(["--out", str(tmp_path / "report.json")]) == 0
    assert "no GPU here" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_it_takes_ten_minutes_at_most() -> None:
    assert sum(limit for _, _, limit in STEPS.values()) <= 600
    assert {tf32 for _, tf32, _ in STEPS.values()} == {"0", "1"}


def test_parts_on_the_cpu() -> None:
    assert all(0 < error < 1e-5 for error in products(CPU, 128).values())
    assert threads(CPU, 2) == {"threads": 2, "differ": 0, "raised": []}
    found = memory(CPU)
    assert found["counted of 64 MiB"] >= 64 << 20 and found["kept when cleared"] == 0
    assert all(found[name].startswith("was ") for name in ("set_cache_limit", "set_memory_limit"))


def test_layers_are_held_against_the_cpu_in_float32() -> None:
    found = layers(CPU, cut(small_config(), layers=2), 20)
    assert list(found) == [f"layer {n}, {dtype}" for n in range(2) for dtype in ("float32", "bfloat16")]
    for name, figures in found.items():
        assert figures["error"] == 0 if "float32" in name else 0 < figures["error"] < 0.2


def test_a_part_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: object) -> None:
    monkeypatch.setattr(gpu_rehearsal, "run", lambda name, device: {"failed": f"{name} on {device}"})
    out = tmp_path / "report.json"
    assert main(["--device", "cpu", "--out", str(out)]) == 0
    steps = json.loads(out.read_text())["steps"]
    assert list(steps) == list(STEPS) and steps["demo"] == {"failed": "demo on cpu"}
    monkeypatch.undo()
    monkeypatch.setitem(STEPS, "demo", (STEPS["demo"][0], "0", 0))
    assert run("demo", "cpu") == {"failed": "it did not end within 0 s"}


@pytest.mark.long
def test_every_part_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert main(["--device", "cpu", "--out", str(out)]) == 0
    steps = json.loads(out.read_text())["steps"]
    assert not [name for name, figures in steps.items() if "failed" in figures]
    assert steps["demo"]["answer"] == "Each token sees the last 128 tokens in full."
