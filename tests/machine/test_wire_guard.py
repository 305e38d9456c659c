"""Processes that wire memory and end in every way: only an end not their own keeps the next from wiring."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsv4_mlx.machine.support import mac_caches
from dsv4_mlx.machine.wire_guard import Guard

# The command line on a pretend Mac, with a command that wires and then ends as it is told.
PROGRAM = """
import os, sys, time
from functools import cache
from dsv4_mlx.machine import wire_guard
from dsv4_mlx.cli.main import app, main
from dsv4_mlx.errors import InputError
import mlx.core as mx
mx.metal.is_available = lambda: True
mx.device_info = lambda: {"memory_size": 128 << 30, "max_recommended_working_set_size": 96 << 30}
mx.get_active_memory = lambda: 90_000_000_000
mx.set_wired_limit = lambda limit: print("wired", limit, flush=True)
if sys.argv[2] == "a minute passes":
    guard = wire_guard.Guard(wire_guard.mac_caches() / "wired", seconds=0.05)
    wire_guard.this_process = cache(lambda: guard)

@app.command()
def wire(end: str) -> None:
    from dsv4_mlx.engine.engine import prepare
    wiring = prepare("auto")
    if wiring is None:
        print("unwired", flush=True)
    else:
        wiring.set()
    if end == "fault":
        raise KeyError("a bug")
    if end == "error":
        raise InputError("a file is damaged")
    if end == "a minute passes":
        time.sleep(0.5)
        print("passed", flush=True)
    if end != "exit":
        time.sleep(60)

main(sys.argv[1:])
"""


class Running:
    """A process that has said its first line."""

    def __init__(self, end: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "wire", end],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.wired = self.process.stdout.readline() == "wired 90000000000\n"

    def ended(self, number: int | None = None) -> tuple[int, str]:
        """After a signal, or by itself: exit code and stderr."""
        if number is not None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Running]]:
    monkeypatch.setenv("HOME", str(tmp_path))
    running: list[Running] = []

    def begin(end: str) -> Running:
        running.append(Running(end))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        one.process.communicate()


def here(seconds: float = 60.0) -> Guard:
    """This process's look at what the others left."""
    return Guard(mac_caches() / "wired", seconds)


@pytest.mark.parametrize(
    ("end", "number", "code"),
    [
        ("exit", None, 0),
        ("error", None, 2),
        ("fault", None, 70),
        ("wait", signal.SIGTERM, 143),
        ("wait", signal.SIGINT, 130),
        ("wait", signal.SIGHUP, -signal.SIGHUP),
    ],
)
def test_an_end_of_its_own(end: str, number: int | None, code: int, start: Callable[[str], Running]) -> None:
    one = start(end)
    assert one.wired
    if number is not None:
        assert list(mac_caches().glob("wired/*.mark"))
    assert one.ended(number)[0] == code
    guard, last = here(), here().last()
    assert guard.left() == [] and guard.refusal() is None
    assert last is not None and (last["pid"], last["bytes"]) == (one.process.pid, 90_000_000_000)


def test_a_kill_within_a_minute_is_heeded_once(start: Callable[[str], Running]) -> None:
    killed = start("wait")
    assert killed.wired
    killed.ended(signal.SIGKILL)
    assert len(here().left()) == 1
    careful = start("exit")
    assert not careful.wired
    code, said = careful.ended()
    assert code == 0
    assert said.count("warning: memory is not wired") == 1
    assert f"90.0 GB by process {killed.process.pid}" in said
    assert "--wire off never does" in said and "Traceback" not in said
    bold = start("exit")
    assert bold.wired
    assert bold.ended() == (0, "")


def test_a_kill_after_a_minute_is_not(start: Callable[[str], Running]) -> None:
    one = start("a minute passes")
    assert one.wired
    assert one.process.stdout is not None
    assert one.process.stdout.readline() == "passed\n"
    one.ended(signal.SIGKILL)
    assert here().refusal() is None


def test_two_at_a_time(start: Callable[[str], Running]) -> None:
    """One that runs keeps nobody from wiring; one that was killed is not hidden by one that runs."""
    first, second = start("wait"), start("wait")
    assert first.wired and second.wired
    assert here().left() == []
    assert first.ended(signal.SIGTERM)[0] == 143
    third = start("wait")
    assert third.wired
    second.ended(signal.SIGKILL)
    refusal = here().refusal()
    assert refusal is not None and str(second.process.pid) in refusal
    assert here().refusal() is None
    assert third.ended(signal.SIGTERM)[0] == 143  # its mark was not taken for the other's
    last = here().last()
    assert last is not None and last["pid"] == third.process.pid


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', None])
def test_a_mark_from_before_a_restart(content: str | None, start: object) -> None:
    """Its number may be another process's by now, this one's too; a panic may have left it empty."""
    guard = here()
    folder = mac_caches() / "wired"
    folder.mkdir(parents=True)
    note = json.dumps({"pid": os.getpid(), "bytes": 1, "time": time.time()}) if content is None else content
    (folder / "x.mark").write_text(note)
    assert guard.refusal() is not None
    assert guard.refusal() == guard.refusal()  # for the whole life of a process
    assert here().refusal() is None


def test_a_folder_that_can_not_be_written_leaves_memory_unwired(start: Callable[[str], Running]) -> None:
    (mac_caches().parent).mkdir(parents=True)
    mac_caches().write_text("")
    one = start("exit")
    assert not one.wired
    code, said = one.ended()
    assert code == 0
    assert "no mark can be left in" in said and "make that folder writable" in said


def test_a_mark_is_renewed_with_each_layout(start: object) -> None:
    guard = here()
    for size in (10, 20):
        guard.begin(size)
    marks = list(mac_caches().glob("wired/*.mark"))
    assert len(marks) == 1
    assert json.loads(marks[0].read_text())["bytes"] == 20
    guard.clear()
    last = guard.last()
    assert last is not None and last["bytes"] == 20
    assert not list(mac_caches().glob("wired/*.mark"))
