"""Sleep is prevented while the model works, and no longer."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal.fakes import Talk

from dsv4_mlx.machine import awake
from dsv4_mlx.machine.awake import Awake
from dsv4_mlx.machine.disks import ask
from dsv4_mlx.terminal import attach as clipboard

ROOT = Path(__file__).parents[2]


class Helper:
    """Stands in for caffeinate."""

    def __init__(self) -> None:
        self.ended = 0

    def terminate(self) -> None:
        self.ended += 1

    def wait(self, timeout: float | None = None) -> int:
        return 0


class Spawner:
    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.helpers: list[Helper] = []

    def __call__(self, command: list[str]) -> Helper:
        self.commands.append(command)
        self.helpers.append(Helper())
        return self.helpers[-1]


def test_on_a_mac_a_helper_runs_while_there_is_work(tmp_path: Path) -> None:
    spawn = Spawner()
    talk = Talk(tmp_path, awake=Awake(spawn, "darwin"))
    assert spawn.commands == [["/usr/bin/caffeinate", "-i", "-w", str(os.getpid())]]  # for loading
    assert spawn.helpers[0].ended == 1
    talk.chat.submit("slow prefill")
    assert len(spawn.helpers) == 2 and spawn.helpers[1].ended == 0
    talk.chat.interrupt()
    talk.settle()
    assert spawn.helpers[1].ended == 1


def test_it_is_started_once_and_elsewhere_never() -> None:
    spawn = Spawner()
    with Awake(spawn, "darwin") as awake:
        awake.on()
    assert len(spawn.helpers) == 1 and spawn.helpers[0].ended == 1
    with Awake(spawn, "linux"):
        pass
    assert len(spawn.helpers) == 1


def test_without_the_helper_the_work_goes_on() -> None:
    def missing(command: list[str]) -> Helper:
        raise FileNotFoundError(command[0])

    with Awake(missing, "darwin"):
        pass


def asked(folder: Path) -> None:
    assert ask(["/bin/echo", "here"]) == "here\n"


def copied(folder: Path) -> None:
    program = folder / "pbcopy"
    program.write_text(f'#!/bin/sh\n/bin/cat > {folder}/copied; echo "$LC_ALL" > {folder}/locale\n')
    program.chmod(0o755)
    assert clipboard.copy("some téxt", lambda sequence: None) == "copied 9 characters"
    assert (folder / "copied").read_bytes() == "some téxt".encode()
    assert (folder / "locale").read_text() == "en_US.UTF-8\n"


def held_awake(folder: Path) -> None:
    with Awake(lambda command: awake._spawn(["/bin/sleep", "60"]), "darwin"):
        pass


@pytest.mark.parametrize("help_is_asked", [asked, copied, held_awake])
def test_helpers_are_started_without_forking(
    help_is_asked: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process may map 150 GB, and a fork of it copies the tables of that."""

    def forked(*arguments: object) -> int:
        raise AssertionError("forked")

    if not subprocess._USE_POSIX_SPAWN:
        pytest.skip("Python never spawns on this system")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(subprocess, "_fork_exec", forked)
    monkeypatch.setenv("LC_ALL", "C")
    help_is_asked(tmp_path)


def test_every_child_is_started_so() -> None:
    """What keeps Python from spawning: close_fds, its own session or group, another user, a folder."""
    forks = {"start_new_session", "preexec_fn", "pass_fds", "cwd", "user", "group", "umask", "process_group"}
    calls = 0
    for path in [*(ROOT / "dsv4_mlx").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("subprocess."):
                continue
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("close_fds") == "False" and not forks & given.keys(), f"{path}:{node.lineno}"
            calls += 1
    assert calls >= 6
