"""Keeps a Mac from sleeping while the model works. Elsewhere it does nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

SECONDS = 60.0  # an agent pauses between two requests: for its tools, or for its user


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


class Held(Protocol):
    def on(self) -> None: ...
    def off(self) -> None: ...


class Linger:
    """`held` goes on when work comes, and off `SECONDS` after the last of it. One thread's."""

    def __init__(self, held: Held | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._held, self._clock = held, clock
        self._on = False
        self._until: float | None = None  # by the clock; None while there is work

    def busy(self) -> None:
        """There is work."""
        self._until = None
        if self._held is not None and not self._on:
            self._on = True
            self._held.on()

    def idle(self) -> float | None:
        """There is none. Seconds after which to say so again; None once `held` is off."""
        if not self._on:
            return None
        now = self._clock()
        if self._until is None:
            self._until = now + SECONDS
        if now < self._until:
            return self._until - now
        self.close()
        return None

    def close(self) -> None:
        """Off at once."""
        if self._held is not None and self._on:
            self._on = False
            self._held.off()
