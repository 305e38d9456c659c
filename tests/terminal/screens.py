"""A person at a terminal: a program in a pseudo-terminal, and what its screen shows."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pexpect
import pyte
from wcwidth import wcwidth

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("run_chat.py")
PATIENCE = 20.0  # seconds until something that should happen has failed to
CTRL_C, CTRL_D, CTRL_L, CTRL_T, ESCAPE, ENTER = "\x03", "\x04", "\x0c", "\x14", "\x1b", "\r"


class Display(pyte.HistoryScreen):
    """pyte drops the rest of a text after a joiner or a vowel sign without width; a terminal doesn't."""

    def draw(self, data: str) -> None:
        super().draw("".join(c for c in data if wcwidth(c) or unicodedata.combining(c)))


class Person:
    """Types keys and reads the screen."""

    def __init__(
        self,
        command: list[str],
        columns: int = 80,
        rows: int = 24,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        path = f"{ROOT}:{ROOT / 'tests'}"
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "LC_ALL", "LC_CTYPE")},
            "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONPATH": path, **(env or {}),
        }  # fmt: skip
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(rows, columns),
            env=environment,
            timeout=PATIENCE,
            cwd=cwd,
        )
        self.child.delaybeforesend = None
        self.screen = Display(columns, rows, history=20_000, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()

    def __enter__(self) -> Person:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.everything())
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()
        self.child.ptyproc.delayafterclose = 0.0  # it has ended
        self.child.close(force=True)

    def look(self, seconds: float = 0.02) -> None:
        """Take in what the program has written."""
        end = time.monotonic() + seconds
        while True:
            try:
                data = self.child.read_nonblocking(65_536, timeout=max(0.0, end - time.monotonic()))
            except (pexpect.TIMEOUT, pexpect.EOF):
                return
            self.raw += data
            self.stream.feed(data)

    def lines(self) -> list[str]:
        """The screen, without empty lines at its end."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            del lines[-1]
        return lines

    def text(self) -> str:
        return "\n".join(self.lines())

    def everything(self) -> str:
        """Scrollback and screen."""
        columns = self.screen.columns
        above = ["".join(row[x].data for x in range(columns)).rstrip() for row in self.screen.history.top]
        return "\n".join([*above, *self.lines()])

    def until(self, test: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        end = time.monotonic() + patience
        while not test():
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not happen; the screen:\n{self.text()}")
            self.look()

    def sees(self, pattern: str, patience: float = PATIENCE) -> None:
        """Wait until the screen matches."""
        self.until(lambda: re.search(pattern, self.text()) is not None, f"seeing {pattern!r}", patience)

    def saw(self, pattern: str, patience: float = PATIENCE) -> None:
        """Wait until screen and scrollback match."""
        self.until(lambda: re.search(pattern, self.everything()) is not None, f"{pattern!r}", patience)

    def lost(self, pattern: str) -> None:
        """Wait until the screen matches no more."""
        self.until(lambda: re.search(pattern, self.text()) is None, f"losing {pattern!r}")

    def types(self, keys: str) -> None:
        self.child.send(keys)

    def enters(self, line: str) -> None:
        self.child.send(line + ENTER)

    def pastes(self, text: str) -> None:
        data = f"\x1b[200~{text}\x1b[201~".encode()
        for start in range(0, len(data), 4096):  # a terminal's input queue is small
            self.child.send(data[start : start + 4096])
            self.look(0.001)

    def resizes(self, columns: int, rows: int) -> None:
        self.look()
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def signals(self, number: signal.Signals) -> None:
        self.child.kill(number)

    def ends(self, code: int | None = 0) -> None:
        """Wait for the end of the program and check its exit code."""
        end = time.monotonic() + PATIENCE
        while self.child.isalive():
            self.look()
            assert time.monotonic() < end, f"the program has not ended:\n{self.text()}"
        self.look()
        if code is not None:
            found = self.child.exitstatus
            assert found == code, f"exit code {found}, expected {code}:\n{self.text()}"


def chat(
    folder: Path,
    scene: str = "quick",
    *options: str,
    size: tuple[int, int] = (80, 24),
    env: dict[str, str] | None = None,
) -> Person:
    """The chat with a scripted engine."""
    return Person([sys.executable, str(RUN), scene, str(folder), *options], *size, env=env, cwd=folder)
