"""Kernels tried in child processes: one that ends its process or never answers costs this one nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any, TypeVar

import dsv4_mlx
from dsv4_mlx.ops.selftest.verdicts import PASSING, CheckLimits, Metal, Verdict

T = TypeVar("T")
Progress = Callable[[int, int], None]

_START = 60.0  # seconds for Python and MLX to start
_CODE = (
    "import os, sys; os.setsid(); sys.path[:0] = [{root!r}]; "
    "from dsv4_mlx.ops.selftest.judge import child; child(sys.argv[1:])"
)


def check(
    metal: Metal,
    kernels: Sequence[str],
    limits: CheckLimits,
    progress: Progress | None = None,
    *,
    edges: bool = False,
) -> list[Verdict]:
    """A verdict for each kernel, in their order. `progress(done, total)` counts kernels. `edges`: the
    kernels' own cases are tried too.

    Two children at once: Metal compiles one pipeline of a process after the other. What failed in a way that
    may pass is tried again in a third.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "launcher": metal.launcher, "limits": asdict(limits), "shape": asdict(metal.shape),
            "edges": edges, "lock": str(Path(folder) / "timing"),
        }  # fmt: skip
        children = _Children(asked, limits, len(kernels), progress)
        try:
            halves = [in_background(partial(children.judge, half)) for half in (kernels[0::2], kernels[1::2])]
            verdicts = {v.kernel: v for half in halves for v in half.result()}
            again = [name for name in kernels if verdicts[name].outcome in PASSING]
            verdicts |= {v.kernel: v for v in children.judge(again)}
        except BaseException:
            children.stop()
            raise
    return [verdicts[name] for name in kernels]


def in_background(work: Callable[[], T]) -> Future[T]:
    """The result of `work`, which a thread does that keeps no program from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class _Children:
    """Those that try kernels, until `stop`. Two threads may `judge` at a time."""

    def __init__(
        self, asked: Mapping[str, Any], limits: CheckLimits, total: int, progress: Progress | None
    ) -> None:
        self._asked, self._limits, self._total, self._progress = asked, limits, total, progress
        self._known: set[str] = set()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped, self._guard = False, threading.Lock()

    def judge(self, kernels: Sequence[str]) -> list[Verdict]:
        """One child tries them all. Where it ends or hangs, the kernel that had begun is to blame, and
        another child goes on with the next."""
        verdicts: list[Verdict] = []
        while len(verdicts) < len(kernels) and not self._stopped:
            verdicts += self._one_child(kernels[len(verdicts) :])
        return verdicts

    def stop(self) -> None:
        """End those that run; no other begins."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _one_child(self, kernels: Sequence[str]) -> list[Verdict]:
        """Verdicts of the kernels that this child got to: at least one."""
        root, asked = str(Path(dsv4_mlx.__file__).parents[1]), {**self._asked, "kernels": list(kernels)}
        command = [sys.executable, "-P", "-c", _CODE.format(root=root), json.dumps(asked)]
        with tempfile.TemporaryFile() as said:
            try:
                # A session of its own: Ctrl-C is for this process, which then ends the child. It takes it
                # itself: so, and with close_fds False, Python spawns and need not fork what maps a model.
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, close_fds=False
                )
            except OSError as error:
                return [Verdict(name, "not checked", f"no process: {error.strerror}") for name in kernels]
            self._running.add(process)
            if self._stopped:
                process.kill()
            try:
                return _listen(process, kernels, self._limits, said, self._count)
            finally:
                self._running.discard(process)
                process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()

    def _count(self, verdict: Verdict) -> None:
        with self._guard:
            self._known.add(verdict.kernel)
            if self._progress is not None:
                self._progress(len(self._known), self._total)


def _listen(
    process: subprocess.Popen[bytes],
    kernels: Sequence[str],
    limits: CheckLimits,
    said: IO[bytes],
    count: Callable[[Verdict], None],
) -> list[Verdict]:
    lines: Queue[bytes | None] = Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    verdicts: list[Verdict] = []
    begun: str | None = None
    while len(verdicts) < len(kernels):
        try:
            line = lines.get(timeout=_START if begun is None else limits.seconds)
        except Empty:
            what = f"nothing came back in {limits.seconds:g} s"
            return _blame(verdicts, kernels, begun, "hangs", what)
        if line is None:
            return _blame(verdicts, kernels, begun, "crashes", _ending(process, said))
        message = json.loads(line)
        if "begins" in message:
            begun = message["begins"]
        elif "alive" not in message:
            verdicts.append(Verdict(**message))
            count(verdicts[-1])
    return verdicts


def _blame(
    verdicts: list[Verdict], kernels: Sequence[str], begun: str | None, outcome: Any, detail: str
) -> list[Verdict]:
    if begun is None:  # before the first kernel: nothing can be checked here
        return [Verdict(name, "not checked", detail) for name in kernels]
    return [*verdicts, Verdict(kernels[len(verdicts)], outcome, detail)]


def _read(pipe: IO[bytes], lines: Queue[bytes | None]) -> None:
    with suppress(ValueError, OSError):  # closed under us: the parent has stopped listening
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _ending(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    code = process.returncode
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"signal {-code} ({signal.strsignal(-code)})"
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f"{how}; {lines[-1][:200]}" if lines else how
