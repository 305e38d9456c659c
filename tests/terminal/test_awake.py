"""Sleep is prevented while the model works, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

from dsv4_mlx.terminal.awake import Awake
from terminal.fakes import Talk


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
