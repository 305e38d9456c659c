"""What `doctor` says of a scripted Mac with faulty kernels, and of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from ops.selftest.conftest import children_find_the_script, compiled
from ops.selftest.test_choose import FAULTS, KERNELS, LIMITS, scripted

from dsv4_mlx.cli.doctor import show_examination
from dsv4_mlx.machine import measure
from dsv4_mlx.machine.facts import Machine, this_machine
from dsv4_mlx.machine.macs import highest_gpu_limit
from dsv4_mlx.machine.measure import read_speed
from dsv4_mlx.planning.candidates import converted_flash
from dsv4_mlx.planning.doctor import advice, examine
from dsv4_mlx.planning.fit import MemoryBudget, fit

__all__ = ["children_find_the_script", "compiled"]  # fixtures, used by being here

WAYS, CONFIG = converted_flash()
MODELS = [way.stored for way in WAYS]
GB = 10**9


def mac(memory: int, limit: int) -> Machine:
    device = {
        "device_name": "Apple M3 Ultra",
        "memory_size": memory,
        "max_recommended_working_set_size": limit,
    }
    return this_machine(
        sysctl=lambda name: "0" if name == "iogpu.wired_limit_mb" else None, metal=True, device=device
    )


SLOW = ("hanging", "slow")  # test_choose waits for these, too


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.long] * (fault in SLOW)) for fault in (*FAULTS, "sound")]
)
def test_a_scripted_mac(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verdict is shown, a fault in one line, and the memory advice is a command that was not run."""
    monkeypatch.setattr("dsv4_mlx.planning.doctor.read_speed", lambda folder, count: 3e9)
    found = examine(
        tmp_path, tmp_path / "kernels.json", WAYS, CONFIG, MemoryBudget(144 * GB),
        metal=scripted(fault), machine=mac(192 << 30, 144 * GB), kernels=KERNELS, limits=LIMITS,
        measured=16 << 20,
    )  # fmt: skip
    outcome = FAULTS[fault][0] if fault in FAULTS else "works"
    assert [v.outcome for v in found.kernels] == [outcome] + ["works"] * (len(KERNELS) - 1)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["kernels"][0]["works"] == (fault == "sound")
    show_examination(found)
    out = capsys.readouterr().out
    assert out.count("hc_post") == (1 if fault == "sound" else 2)  # its line, and the advice to report it
    assert "Apple M3 Ultra" in out
    assert "sudo sysctl iogpu.wired_limit_mb=167116" in out  # 192 GiB less 15 %: native fits then
    assert "not checked" not in out
    assert "wire    at most 144.0 GB of a model with --wire auto\n" in out
    assert "MLX_ENABLE_TF32=0: float32 products are float32" in out
    assert plain["memory"]["wired"] == {"most": 144 * GB, "last": None, "refused": False}
    assert plain["switches"] == {"MLX_ENABLE_TF32": "0"}


def test_sizes_of_the_recipes() -> None:
    """The converter's own plan: the true checkpoint's 159.6 GB with its scales spread and records padded."""
    native, small = MODELS
    assert native.bytes == pytest.approx(159_609_485_896, rel=0.005)
    assert small.bytes < native.bytes
    assert native.experts.record_bytes == 13_369_344
    assert native.others == native.bytes - 44 * 256 * 13_369_344


@pytest.mark.parametrize(
    ("memory", "limit", "how"),
    [
        (16, 11, "too large"),
        (48, 36, "paged"),
        (192, 144, "paged"),
        (256, 192, "resident"),
        (512, 384, "resident"),
    ],
)
def test_fits(memory: int, limit: int, how: str) -> None:
    """What is promised never exceeds the limit, and the context only grows with it."""
    found = fit(MODELS[0], CONFIG, MemoryBudget(limit * GB))
    assert found.placement == how
    assert (found.need <= limit * GB) == (how != "too large")
    assert (found.context > 0) == (how != "too large")
    if how == "paged":
        slots = MODELS[0].others + MODELS[0].experts.bytes(found.slots)
        assert slots < limit * GB
        assert 1 <= found.slots < 256


def test_advice_names_what_raising_the_limit_gives() -> None:
    machine = mac(192 << 30, 144 * GB)
    before = [fit(m, CONFIG, MemoryBudget(144 * GB)) for m in MODELS]
    after = [fit(m, CONFIG, MemoryBudget(highest_gpu_limit(machine.memory))) for m in MODELS]
    said = advice(machine, before, after, [], free=10**12)
    assert len(said) == 2
    assert "native resident" in said[0]
    enough = mac(512 << 30, 384 * GB)
    large = [fit(m, CONFIG, MemoryBudget(384 * GB)) for m in MODELS]
    assert advice(enough, large, large, [], free=10**12) == []
    tiny = [fit(m, CONFIG, MemoryBudget(5 * GB)) for m in MODELS]
    assert any("does not run here" in line for line in advice(mac(8 << 30, 5 * GB), tiny, tiny, [], 10**12))
    assert any("make room" in line for line in advice(enough, large, large, [], free=GB))


def test_the_highest_limit_leaves_room() -> None:
    for memory in (16, 24, 36, 64, 96, 128, 192, 512):
        left = (memory << 30) - highest_gpu_limit(memory << 30)
        assert left >= max(16 << 30, 0.15 * (memory << 30))


def test_read_speed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = read_speed(tmp_path, 16 << 20)
    assert speed is None or speed > 1e6
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(measure, "free_bytes", lambda folder: 1 << 30)
    assert read_speed(tmp_path, 16 << 20) is None


def test_a_cache_that_can_not_be_passed_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mac whose F_NOCACHE does nothing: what was written is in memory, and would be read from there."""
    said: list[int] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    monkeypatch.setattr("fcntl.fcntl", lambda descriptor, command, value=0: said.append(command))
    assert read_speed(tmp_path, 16 << 20) is None
    assert said[0] == 48, "before the first byte is written"


@pytest.mark.parametrize(("again", "speed"), [(1.4e9, 0.75e9), (1.6e9, None), (0.4e9, 0.75e9)])
def test_a_second_reading_that_is_faster_refuses_what_was_measured(
    again: float, speed: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings, ranges = iter((1e9, again, 0.6e9)), []

    def reading(name: str, *part: int) -> float:
        ranges.append(part)
        return next(readings)

    monkeypatch.setattr(measure, "_leave_cache", lambda descriptor: False)
    monkeypatch.setattr(measure, "_read", reading)
    assert read_speed(tmp_path, 32 << 20) == (None if speed is None else pytest.approx(speed))
    assert ranges == [(0, 16 << 20), (0, 16 << 20), (16 << 20, 16 << 20)]


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_the_command_says_what_was_not_checked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsv4_mlx", "doctor", "--json", "--dir", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["kernels"] == []
    assert "no kernel was run" in found["not_checked"][0]
    assert found["machine"]["gpu_limit"] is None
    assert {m["name"] for m in found["models"]} == {"native", "4bit"}


def test_a_folder_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = examine(
        tmp_path / "file",
        tmp_path / "kernels.json",
        WAYS,
        CONFIG,
        MemoryBudget(GB, 4),
        kernels=(),
        measured=1 << 20,
    )
    assert found.read is None
    assert any("read speed" in line for line in found.unchecked)
