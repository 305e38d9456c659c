"""Killed at any moment of download, conversion, writing and renaming, and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub.conftest import same
from hub.fake_hub import Hub, serving

SCRIPT = Path(__file__).parent / "crash_helpers.py"
ROOT = Path(__file__).parents[2]
EVENTS = 10**9  # more than there are


def started(hub: Hub, target: Path, event: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, str(SCRIPT), hub.endpoint, str(target), str(event)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def finished(target: Path) -> dict[str, int]:
    """Output files that are done, and when they were written.

    One that was renamed and not yet entered in the journal is the running piece: it is made again.
    """
    journal = target / ".convert.journal"
    done = {path.name for path in target.glob("*.safetensors")}
    if journal.exists():
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
        done &= {json.loads(line)["file"] for line in lines if line.endswith("\n")}
    return {name: (target / name).stat().st_mtime_ns for name in done}


def survive(official: Path, converted: Path, folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    with serving(Hub(official)) as hub:
        whole = started(hub, folder / "whole", EVENTS)
        assert whole.returncode == 0, whole.stderr
        events = EVENTS - int(whole.stdout)
        assert same(folder / "whole", converted) and events > 50
        target, number = folder / "0", 0
        for _ in range(kills):
            before = finished(target)
            run = started(hub, target, rng.randint(1, events))
            assert before.items() <= finished(target).items(), "a finished file was written again"
            if run.returncode == 0:
                assert same(target, converted)
                number += 1
                target = folder / str(number)
            else:
                assert run.returncode == -signal.SIGKILL, run.stderr
        before = finished(target)
        last = started(hub, target, EVENTS)
        assert last.returncode == 0, last.stderr
        assert before.items() <= finished(target).items()
        assert same(target, converted)
        assert not (folder / f"{target.name}.official").exists()


def test_killed_at_4_random_points(official: Path, converted: Path, tmp_path: Path) -> None:
    survive(official, converted, tmp_path, 4, 0)


@pytest.mark.long
def test_killed_at_50_random_points(official: Path, converted: Path, tmp_path: Path) -> None:
    survive(official, converted, tmp_path, 50, 1)
