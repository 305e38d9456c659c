"""Work of hours: the disk is named, backups are kept away after asking, the display says where it is."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Checkpoints

from dsv4_mlx.cli.console import Speed, progress
from dsv4_mlx.cli.download import stages
from dsv4_mlx.cli.main import run
from dsv4_mlx.hub.download import DownloadStep
from dsv4_mlx.machine.disks import Volume

MARK = ".metadata_never_index"


@pytest.fixture
def tmutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Time Machine on PATH that writes down what it is asked, and fails if its folder holds "broken"."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "tmutil"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\ntest ! -e {folder}/broken\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def test_excluded_when_told_to(
    checkpoints: Checkpoints, tmutil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official, target = str(checkpoints.official("small")), tmp_path / "out"
    assert run(["convert", official, str(target), "--exclude-from-backup"]) == 0
    assert asked(tmutil) == [f"addexclusion {target}"] and (target / MARK).exists()
    assert run(["convert", official, str(target), "--resume"]) == 0  # the mark is no foreign file
    (tmutil / "broken").touch()
    assert run(["convert", official, str(tmp_path / "b"), "--exclude-from-backup"]) == 0
    assert "Time Machine was not kept away" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / MARK).touch()
    assert run(["convert", official, str(tmp_path / "empty"), "--no-exclude-from-backup"]) == 0


def test_not_asked_without_a_terminal(
    checkpoints: Checkpoints, tmutil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official = str(checkpoints.official("small"))
    assert run(["convert", official, str(tmp_path / "a")]) == 0
    assert "--exclude-from-backup keeps them away" in capsys.readouterr().err
    assert run(["convert", official, str(tmp_path / "b"), "--no-exclude-from-backup"]) == 0
    assert "keeps them away" not in capsys.readouterr().err
    assert asked(tmutil) == [] and not (tmp_path / "a" / MARK).exists()


def test_a_refused_source_leaves_nothing(tmutil: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    assert run(["convert", str(tmp_path / "source"), str(tmp_path / "out"), "--exclude-from-backup"]) == 2
    assert asked(tmutil) == [] and not (tmp_path / "out").exists()


def test_elsewhere_there_is_nothing_to_ask(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(shutil, "which", lambda name: None)
    official, words = str(checkpoints.official("small")), "there is no tmutil here"
    assert run(["convert", official, str(tmp_path / "a")]) == 0
    assert words not in capsys.readouterr().err
    assert run(["convert", official, str(tmp_path / "b"), "--exclude-from-backup"]) == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "excluded"), [("\n", True), ("n\n", False)])
def test_asked_on_a_terminal(
    answer: str, excluded: bool, checkpoints: Checkpoints, tmutil: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    words = ["convert", str(checkpoints.official("small")), str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "dsv4_mlx", *words], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE
    )
    os.close(theirs)
    shown = b""
    while b"[Y/n]" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, answer.encode())
    try:
        while more := os.read(ours, 1000):
            shown += more
    except OSError:  # the terminal has gone with the process
        pass
    assert process.wait(60) == 0, shown
    os.close(ours)
    assert process.stdout is not None
    process.stdout.close()
    assert bool(asked(tmutil)) == excluded == (tmp_path / "out" / MARK).exists()


def test_the_disk_is_named(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stick = Volume("T7", "exfat", True, "USB")
    monkeypatch.setattr("dsv4_mlx.machine.disks.volume_of", lambda path: stick)
    monkeypatch.setattr("dsv4_mlx.machine.measure.read_speed", lambda folder, count: 4.5e8)
    assert run(["convert", str(checkpoints.official("small")), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "'T7', an external disk (USB) with exFAT: read at 450.0 MB/s" in said and "no journal" in said
    monkeypatch.setattr("dsv4_mlx.machine.measure.read_speed", lambda folder, count: None)
    assert (
        run(["plan", str(checkpoints.converted("small")), "--dir", str(tmp_path), "--bandwidth", "1GB"]) == 0
    )
    assert "read speed not measured" in capsys.readouterr().err


def test_the_stages_are_named() -> None:
    seen: list[tuple[int, int, str]] = []
    advance = stages(lambda done, total, stage="": seen.append((done, total, stage)))
    advance(DownloadStep("looking", 3, 46))
    advance(DownloadStep("downloading", 10, 100, "model-00003-of-00046.safetensors"))
    advance(
        DownloadStep("converting", 5, 90, "model-00002-of-00046.safetensors", "layer-00.experts.safetensors")
    )
    advance(DownloadStep("downloading", 100, 100, "model-00046-of-00046.safetensors"))
    assert seen == [
        (0, 0, "looking at shard 3 of 46"),
        (10, 100, "downloading 3 of 46"),
        (15, 190, "downloading 3 of 46, converting 2 of 46, writing layer-00.experts"),
        (105, 190, "converting 2 of 46, writing layer-00.experts"),
    ]


def test_speed_is_that_of_the_last_half_minute() -> None:
    clock = [0.0]
    speed = Speed(lambda: clock[0])
    assert speed.reached(10**9) is None  # there before the start
    for second in range(1, 200):
        clock[0] = float(second)
        rate = speed.reached(10**9 + second * (100 if second < 100 else 0))
    assert rate == 0.0
    clock[0] = 200.0
    assert speed.reached(10**9 + 310) == pytest.approx(10, rel=0.1)


def test_lines_say_bytes_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("dsv4_mlx.cli.console.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("dsv4_mlx.cli.console.Speed.__init__.__defaults__", (lambda: clock[0],))
    with progress("downloading") as show:
        show(0, 10**9, "downloading 1 of 2")
        clock[0] += 10
        show(10**8, 10**9, "downloading 1 of 2")
    assert (
        capsys.readouterr().err
        == "downloading: 100.0 MB of 1.0 GB, 10.0 MB/s, 1 min 30 s left; downloading 1 of 2\n"
    )
