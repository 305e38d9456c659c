"""Killed anywhere, full disk, Ctrl-C, read errors: what is left can be continued to the very same bytes."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4_mlx.convert import folder
from dsv4_mlx.convert import pipeline as stream
from dsv4_mlx.convert.run import convert
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.synthetic import small_config, write_checkpoint

Folder = Callable[[str], Path]

# Counts every call that changes the disk and kills the process at the n-th; a write is torn in half first.
KILLER = """
import os, signal, sys, threading
from pathlib import Path
source, target, recipe, last, resume = sys.argv[1:]
calls, gate = 0, threading.Lock()
def counted(name):
    real = getattr(os, name)
    def call(*given, **named):
        global calls
        with gate:
            calls += 1
            if calls == int(last):
                if name == "pwrite":
                    half = memoryview(given[1])[: len(given[1]) // 2]
                    try:
                        real(given[0], half, *given[2:])
                    except OSError:
                        pass  # past the cache, only whole pages go
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    setattr(os, name, call)
for name in ("pwrite", "fsync", "replace", "ftruncate", "unlink", "mkdir", "close", "open"):
    counted(name)
from dsv4_mlx.convert.run import convert
calls = 0
convert(Path(source), Path(target), recipe, resume=bool(int(resume)), block=64 * 1024)
print(calls)
"""


def run_killed(source: Path, target: Path, recipe: str, last: int, resume: bool) -> int | None:
    """Convert in a child that dies at its `last` disk call; the number of calls if it got through."""
    given = [str(source), str(target), recipe, str(last), str(int(resume))]
    done = subprocess.run([sys.executable, "-c", KILLER, *given], capture_output=True, text=True, timeout=120)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def assert_same(left: Path, right: Path) -> None:
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    assert filecmp.cmpfiles(left, right, names, shallow=False) == (names, [], [])


def kill_and_resume(source: Path, home: Path, recipe: str, kills: int, seed: int) -> None:
    """Kill `kills` conversions at random calls, some of them twice; resume each to the reference's bytes."""
    reference, target = home / "reference", home / "target"
    total = run_killed(source, reference, recipe, 0, False)
    assert total is not None and total > 100
    draw = random.Random(seed)
    for kill in range(kills):
        last = draw.randint(1, total)
        assert run_killed(source, target, recipe, last, False) is None
        if kill % 3 == 0:
            run_killed(source, target, recipe, draw.randint(1, total), True)
        convert(source, target, recipe, resume=True)
        assert_same(reference, target)
        shutil.rmtree(target)


@pytest.mark.parametrize("recipe", ["native", "4bit"])
def test_three_kills(recipe: str, checkpoints: Folder, tmp_path: Path) -> None:
    kill_and_resume(checkpoints("awkward"), tmp_path, recipe, kills=3, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["native", "4bit"])
def test_twenty_kills(recipe: str, checkpoints: Folder, tmp_path: Path) -> None:
    kill_and_resume(checkpoints("small"), tmp_path, recipe, kills=20, seed=20)


@pytest.fixture(scope="module")
def whole(checkpoints: Folder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An uninterrupted conversion and the number of disk calls it took."""
    reference = tmp_path_factory.mktemp("whole") / "reference"
    total = run_killed(checkpoints("awkward"), reference, "native", 0, False)
    assert total is not None
    return reference, total


def later(*calls: int) -> list[Any]:
    return [pytest.param(call, marks=pytest.mark.long) for call in calls]


@pytest.mark.parametrize("call", [1, 4, 8, -2, -4, -7, *later(2, 3, 5, 6, 7, 9, 12, -1, -3, -5, -6, -8, -12)])
def test_kills_at_the_ends(call: int, whole: tuple[Path, int], checkpoints: Folder, tmp_path: Path) -> None:
    """The first and last calls: before there is a journal, around the manifest, while tidying up."""
    source, target = checkpoints("awkward"), tmp_path / "target"
    reference, total = whole
    assert run_killed(source, target, "native", call if call > 0 else total + 1 + call, False) is None
    convert(source, target, resume=True)
    assert_same(reference, target)


def test_a_dead_owner_does_not_block(checkpoints: Folder, tmp_path: Path) -> None:
    """Killed after taking the lock and before writing: nothing was begun, so no --resume is asked for."""
    target = tmp_path / "target"
    target.mkdir()
    (target / folder.LOCK).write_text("999999\n")
    assert convert(checkpoints("awkward"), target).status == "converted"


# --- what resume accepts ------------------------------------------------------------------------------


class Interrupt:
    """A progress callback that raises once, in the middle."""

    def __init__(self, error: BaseException, at: float = 0.5) -> None:
        self.error = error
        self.at = at

    def __call__(self, done: int, total: int, name: str) -> None:
        if done > self.at * total:
            raise self.error


def begin(source: Path, target: Path, recipe: str = "native") -> None:
    """Leave an unfinished conversion, as Ctrl-C does."""
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, recipe, progress=Interrupt(KeyboardInterrupt()))


def test_resume_on_nothing_starts(checkpoints: Folder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        assert convert(checkpoints("awkward"), tmp_path / name, resume=True).status == "converted"


def test_resume_keeps_what_is_finished(checkpoints: Folder, tmp_path: Path) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    begin(source, target)
    assert not list(target.glob("*.part"))
    with pytest.raises(InputError, match=r"unfinished[\s\S]*--resume"):
        convert(source, target)
    kept = {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
    assert kept
    steps: list[int] = []
    summary = convert(source, target, resume=True, progress=lambda done, *_: steps.append(done))
    assert summary.status == "resumed"
    assert summary.bytes_written == summary.bytes - sum(path.stat().st_size for path in kept)
    assert steps[0] > summary.bytes - summary.bytes_written and steps[-1] == summary.bytes
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    convert(source, tmp_path / "reference")
    assert_same(tmp_path / "reference", target)


def test_resume_makes_a_changed_file_again(checkpoints: Folder, tmp_path: Path) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    begin(source, target)
    os.truncate(target / "embed.safetensors", 100)
    convert(source, target, resume=True)
    convert(source, tmp_path / "reference")
    assert_same(tmp_path / "reference", target)


def test_resume_on_a_finished_conversion(checkpoints: Folder, tmp_path: Path) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    convert(source, target)
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    summary = convert(source, target, resume=True)
    assert summary.status == "nothing to do" and summary.bytes_written == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    with pytest.raises(InputError, match="holds a conversion that is finished"):
        convert(source, target)
    os.truncate(target / "embed.safetensors", 100)
    summary = convert(source, target, resume=True)
    assert (summary.status, summary.repaired) == ("repaired", ("embed.safetensors",))
    convert(source, tmp_path / "reference")
    assert_same(tmp_path / "reference", target)


@pytest.mark.parametrize("finished", [False, True])
def test_resume_refuses_another_task(finished: bool, checkpoints: Folder, tmp_path: Path) -> None:
    source, target, other = checkpoints("small"), tmp_path / "target", tmp_path / "other"
    if finished:
        convert(source, target)
    else:
        begin(source, target)
    write_checkpoint(other, small_config(), seed=77)  # same headers, other weights
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    with pytest.raises(InputError, match="another source"):
        convert(other, target, resume=True)
    with pytest.raises(InputError, match="recipe native, not 4bit"):
        convert(source, target, "4bit", resume=True)
    assert before == {path.name: path.stat().st_mtime_ns for path in target.iterdir()}


@pytest.mark.parametrize("finished", [False, True])
def test_resume_refuses_another_format(finished: bool, checkpoints: Folder, tmp_path: Path) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    if finished:
        convert(source, target)
        path = target / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    else:
        begin(source, target)
        path = target / folder.JOURNAL
        first, _, rest = path.read_text().partition("\n")
        path.write_text(json.dumps(json.loads(first) | {"format": 99}) + "\n" + rest)
    with pytest.raises(InputError, match="format 99"):
        convert(source, target, resume=True)


def test_a_damaged_journal_is_not_trusted(checkpoints: Folder, tmp_path: Path) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    begin(source, target)
    path = target / folder.JOURNAL
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(InputError, match="record of the unfinished conversion is damaged"):
        convert(source, target, resume=True)
    assert list(target.glob("*.safetensors"))


# --- the machine fails ----------------------------------------------------------------------------------


def test_disk_full_before_the_first_byte(
    checkpoints: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(
        MachineError, match=r"too full: 5\.4 MB are needed, 1\.0 MB are free, 4\.4 MB are missing"
    ):
        convert(checkpoints("small"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_disk_full_on_the_way(
    call: str, checkpoints: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    real: Any = getattr(os, call)
    left = 20

    def full(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        patch.setattr(folder, "check_space", lambda *_: None)
        patch.setattr(folder, "free_bytes", lambda _: 1000)
        with pytest.raises(
            MachineError, match=r"the disk is full: .* are missing to finish[\s\S]*--resume"
        ) as caught:
            convert(source, target)
    assert caught.value.exit_code == 3
    summary = convert(source, target, resume=True)
    assert summary.status == "resumed"
    assert f"{(summary.bytes_written - 1000) / 1e6:,.1f} MB are missing" in str(caught.value)
    convert(source, tmp_path / "reference")
    assert_same(tmp_path / "reference", target)


def test_read_error(checkpoints: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = checkpoints("awkward"), tmp_path / "target"
    real = os.preadv
    left = 60

    def broken(*given: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        with pytest.raises(MachineError, match=r"can't be read: Input/output error[\s\S]*--resume"):
            convert(source, target)
    assert convert(source, target, resume=True).status == "resumed"
    convert(source, tmp_path / "reference")
    assert_same(tmp_path / "reference", target)


def test_partial_writes_and_reads(
    checkpoints: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may write or read less than asked."""
    source = checkpoints("awkward")
    write, read = os.pwrite, os.preadv
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda d, data, at: write(d, memoryview(data)[:1000], at))
        patch.setattr(os, "preadv", lambda d, views, at: read(d, [views[0][:777]], at))
        convert(source, tmp_path / "slow")
    convert(source, tmp_path / "reference")
    assert_same(tmp_path / "reference", tmp_path / "slow")


def test_block_sizes_are_checked(checkpoints: Folder, tmp_path: Path) -> None:
    for block in (0, 5000, stream.LARGEST_BLOCK + 4096):
        with pytest.raises(ValueError, match="expected a multiple of 4096"):
            convert(checkpoints("awkward"), tmp_path / "target", block=block)
