"""Bad input: a clear message, the right exit code, the source untouched, and nothing left in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoint.damage import poke
from checkpoint.hostile import CASES, Case

from dsv4_mlx.convert.run import convert
from dsv4_mlx.errors import Dsv4Error, InputError, MachineError, UsageError


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_checkpoint(case: Case, source: Path, tmp_path: Path) -> None:
    case.damage(source)
    before = snapshot(source)
    target = tmp_path / "target"
    with pytest.raises(Dsv4Error) as caught:
        convert(source, target)
    assert case.says in str(caught.value)
    assert caught.value.exit_code == case.exit_code
    assert snapshot(source) == before
    assert not target.exists(), "a retry with a repaired source must find the way free"


def test_bad_data_found_in_the_4bit_recipe(source: Path, tmp_path: Path) -> None:
    poke(source, "layers.2.attn.wq_b.scale", 255)
    with pytest.raises(InputError, match=r"layers\.2\.attn\.wq_b\.scale holds the scale byte 255"):
        convert(source, tmp_path / "target", "4bit")
    assert not (tmp_path / "target").exists()


def test_an_empty_target_that_existed_stays(source: Path, tmp_path: Path) -> None:
    poke(source, "layers.2.attn.wq_b.scale", 255)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(InputError):
        convert(source, target)
    assert list(target.iterdir()) == []


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "target")


def test_unknown_recipe(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe '3bit'[\s\S]*native, 4bit") as caught:
        convert(source, tmp_path / "target", "3bit")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("resume", [False, True])
def test_target_not_empty(source: Path, tmp_path: Path, resume: bool) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        convert(source, target, resume=resume)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]


def test_target_is_the_source_or_in_it(source: Path, tmp_path: Path) -> None:
    before = snapshot(source)
    with pytest.raises(InputError, match="the same folder"):
        convert(source, source)
    with pytest.raises(InputError, match="inside the source"):
        convert(source, source / "x")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(InputError, match="the same folder"):
        convert(source, tmp_path / "link")
    assert snapshot(source) == before


def test_target_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        convert(source, tmp_path / "file")
    with pytest.raises(InputError, match="can't be"):
        convert(source, tmp_path / "file" / "below")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write anywhere, so root becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_target_not_writable(source: Path) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folders are closed to other users
        home = Path(open_to_all)
        home.chmod(0o755)
        readable = Path(shutil.copytree(source, home / "source"))
        (home / "target").mkdir(mode=0o555)
        with ordinary_user():
            with pytest.raises(InputError, match="can't be written to"):
                convert(readable, home / "target")
            with pytest.raises(InputError, match="can't be made"):
                convert(readable, home / "target" / "below")
        assert list((home / "target").iterdir()) == []


def test_source_not_readable(source: Path) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        home = Path(open_to_all)
        home.chmod(0o777)
        closed = Path(shutil.copytree(source, home / "source"))
        next(closed.glob("model-00002*")).chmod(0)
        with ordinary_user(), pytest.raises(MachineError, match="can't be read: Permission denied"):
            convert(closed, home / "target")
        assert not (home / "target").exists()


def test_target_file_system_is_read_only(source: Path) -> None:
    """/proc takes no folders, from root either."""
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    with pytest.raises(InputError, match="can't be made"):
        convert(source, Path("/proc/converted"))


def test_target_vanishes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"

    def vanish(done: int, total: int, name: str) -> None:
        if name == "layer-01.safetensors" and target.exists():
            shutil.rmtree(target)

    with pytest.raises(MachineError, match="vanished") as caught:
        convert(source, target, progress=vanish)
    assert caught.value.exit_code == 3


def test_source_changes_while_it_is_read(source: Path, tmp_path: Path) -> None:
    def change(done: int, total: int, name: str) -> None:
        if name == "head.safetensors":
            os.utime(next(source.glob("model-00002*")))

    with pytest.raises(InputError, match="was changed while it was read"):
        convert(source, tmp_path / "target", progress=change)
    assert not (tmp_path / "target").exists()


def test_hub_cache_links_are_followed(source: Path, tmp_path: Path) -> None:
    """In the Hub's cache a snapshot's files are links into blobs/ beside it."""
    repository = tmp_path / "models--deepseek-ai--X"
    snapshots, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshots.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.move(path, blobs / str(number))
        (snapshots / path.name).symlink_to(Path("../../blobs") / str(number))
    assert convert(snapshots, tmp_path / "target").status == "converted"
    assert not any(path.is_symlink() for path in (tmp_path / "target").iterdir())


HOLD = """
import sys, time
from pathlib import Path
from dsv4_mlx.convert.run import convert
def hold(done, total, name):
    if not hold.told:
        print("writing", flush=True)
        hold.told = True
        sys.stdin.read()
hold.told = False
convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=hold)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_two_conversions_into_one_target(source: Path, tmp_path: Path, resume: bool) -> None:
    target = tmp_path / "target"
    command = [sys.executable, "-c", HOLD, str(source), str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None and first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        before = snapshot(target)
        with pytest.raises(InputError, match=f"another conversion \\(process {first.pid}\\)"):
            convert(source, target, resume=resume)
        assert snapshot(target) == before
        first.stdin.close()
    assert first.returncode == 0
    assert convert(source, target, resume=True).status == "nothing to do"
