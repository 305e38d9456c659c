"""Keeps a Mac from sleeping while the model works. Elsewhere it does nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol


class Process(Protocol):
    def terminate(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


Spawn = Callable[[list[str]], Process]


def _spawn(command: list[str]) -> Process:
    # close_fds False: Python then spawns, and need not fork a process that maps a whole model.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False)


class Awake:
    """`on` while there is work, `off` when it is done. The helper also ends when this process does."""

    def __init__(self, spawn: Spawn = _spawn, platform: str = sys.platform) -> None:
        self._spawn, self._platform = spawn, platform
        self._process: Process | None = None

    def on(self) -> None:
        if self._platform != "darwin" or self._process is not None:
            return
        with contextlib.suppress(OSError):  # without it the work goes on, and the Mac may sleep
            self._process = self._spawn(["/usr/bin/caffeinate", "-i", "-w", str(os.getpid())])

    def off(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                process.terminate()
                process.wait(5)

    def __enter__(self) -> Awake:
        self.on()
        return self

    def __exit__(self, *error: object) -> None:
        self.off()
