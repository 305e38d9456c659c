"""The disk is full at one write after the other: exit code 3, what is missing, and on when there is room."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hub.conftest import QUICK, same
from hub.fake_hub import REPOSITORY, Hub, serving

from dsv4_mlx.convert.run import convert
from dsv4_mlx.errors import MachineError
from dsv4_mlx.hub import fetch
from dsv4_mlx.hub.download import convert_from_hub, download

SAMPLE = 5  # writes that are tried in every test run; the long one tries all
Job = Callable[[Hub, Path, bool], object]


class Disk:
    """Counts the calls that need room. From call `last` on there is none; 0: always enough."""

    def __init__(self, last: int = 0) -> None:
        self.calls, self.last = 0, last

    def ask(self) -> None:
        self.calls += 1
        if self.last and self.calls >= self.last:
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def mounted(self) -> Iterator[Disk]:
        def asking(real: Any) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                self.ask()
                return real(*given, **named)

            return call

        def opened(real: Any, flags: Callable[..., bool]) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                if flags(*given, **named):
                    self.ask()
                return real(*given, **named)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("pwrite", "fsync", "mkdir", "link"):
                patch.setattr(os, name, asking(getattr(os, name)))
            patch.setattr(fetch, "_write", asking(fetch._write))
            patch.setattr(os, "ftruncate", asking(os.ftruncate))
            patch.setattr(
                os, "open", opened(os.open, lambda path, flags=0, *_, **__: bool(flags & os.O_CREAT))
            )
            patch.setattr(Path, "open", opened(Path.open, lambda path, mode="r", *_, **__: mode[0] in "wa"))
            patch.setattr(Path, "write_bytes", asking(Path.write_bytes))
            yield self


def from_folder(hub: Hub, place: Path, resume: bool) -> object:
    return convert(place.parent / "source", place / "out", resume=resume, block=256 * 1024)


def from_hub(hub: Hub, place: Path, resume: bool) -> object:
    return convert_from_hub(REPOSITORY, place / "out", resume=resume, endpoint=hub.endpoint, retry=QUICK)


def deleting(hub: Hub, place: Path, resume: bool) -> object:
    return convert_from_hub(
        REPOSITORY, place / "out", resume=resume, delete=True, endpoint=hub.endpoint, retry=QUICK
    )


def only_download(hub: Hub, place: Path, resume: bool) -> object:
    return download(REPOSITORY, place / "out", endpoint=hub.endpoint, retry=QUICK)


JOBS: dict[str, Job] = {
    "convert": from_folder,
    "download": only_download,
    "convert from the Hub": from_hub,
    "and delete": deleting,
}


def stopped(job: Job, hub: Hub, place: Path, last: int) -> MachineError | None:
    """The error of a disk that is full from write `last` on; None if there were fewer writes."""
    with Disk(last).mounted() as disk:
        try:
            job(hub, place, False)
        except MachineError as error:
            return error
    assert disk.calls < last, "a full disk was not noticed"
    return None


def full_at_every_write(job: Job, official: Path, wanted: Path, home: Path, step: int | None) -> int:
    """Fills the disk at every write, or every so many-th of a sample; the number that was tried."""
    (home / "source").symlink_to(official)
    tried, told = 0, []
    with serving(Hub(official)) as hub:
        with Disk().mounted() as disk:
            job(hub, home / "whole", False)
        step = 1 if step is None else max(1, disk.calls // step)
        for last in range(1, disk.calls + 1, step):
            place = home / str(last)
            error = stopped(job, hub, place, last)
            if error is None:  # fewer writes than the first time: pieces come from the network as they like
                break
            message = str(error)
            assert error.exit_code == 3, message
            found = re.search(r"the disk is full: ([0-9.,]+) (B|kB|MB) are missing", message)
            assert found is not None, (last, message)
            told.append(float(found[1].replace(",", "")) * {"B": 1, "kB": 1000, "MB": 10**6}[found[2]])
            assert error.next is not None and error.next.startswith("free "), message
            job(hub, place, True)
            assert same(place / "out", wanted)
            assert sorted(path.name for path in (place / "out").glob(".convert*")) == []
            tried += 1
    # All of it at first; less and less, where one thing is written after the other. What has come over the
    # network by the n-th write is not the same each time.
    assert told[0] > 0.8 * sum(path.stat().st_size for path in wanted.glob("*.safetensors")) > 0
    assert job is not from_folder or told == sorted(told, reverse=True)
    assert job is not only_download or step > 1 or told[-1] < told[0] / 4
    return tried


@pytest.fixture(autouse=True)
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused beforehand; 1,000 bytes are free when it is told how much is missing."""
    monkeypatch.setattr("dsv4_mlx.convert.folder.free_bytes", lambda place: 1000)
    monkeypatch.setattr("dsv4_mlx.convert.folder.check_space", lambda *_: None)
    jobs = import_module("dsv4_mlx.hub.download")  # its package has a function of that name
    monkeypatch.setattr(jobs, "check_space", lambda *_: None)


@pytest.mark.parametrize("name", JOBS)
def test_full_at_some_writes(name: str, official: Path, converted: Path, tmp_path: Path) -> None:
    wanted = official if name == "download" else converted
    assert full_at_every_write(JOBS[name], official, wanted, tmp_path, SAMPLE) >= SAMPLE


@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_full_at_every_write(
    name: str, official: Path, converted: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    wanted = official if name == "download" else converted
    record_property("writes", full_at_every_write(JOBS[name], official, wanted, tmp_path, None))
