"""Kernels tried in child processes: one that ends its process or never answers costs this one nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

import dsv4_mlx
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal, Verdict

Progress = Callable[[int, int], None]

_START = 60.0  # seconds for Python and MLX to start
_CODE = (
    "import os, sys; os.setsid(); sys.path[:0] = [{root!r}]; "
    "from dsv4_mlx.ops.selftest.judge import child; child(sys.argv[1:])"
)


def check(
    metal: Metal, kernels: Sequence[str], limits: CheckLimits, progress: Progress | None = None
) -> list[Verdict]:
    """A verdict for each kernel, in their order. `progress(done, total)` counts kernels.

    One child tries them all. Where it ends or hangs, the kernel that had begun is to blame, and another
    child goes on with the next.
    """
    verdicts: list[Verdict] = []
    while len(verdicts) < len(kernels):
        left = kernels[len(verdicts) :]
        for verdict in _one_child(metal, left, limits):
            verdicts.append(verdict)
            if progress is not None:
                progress(len(verdicts), len(kernels))
    return verdicts


def _one_child(metal: Metal, kernels: Sequence[str], limits: CheckLimits) -> list[Verdict]:
    """Verdicts of the kernels that this child got to: at least one."""
    asked = {"launcher": metal.launcher, "limits": asdict(limits), "kernels": list(kernels)}
    root = str(Path(dsv4_mlx.__file__).parents[1])
    command = [sys.executable, "-P", "-c", _CODE.format(root=root), json.dumps(asked)]
    with tempfile.TemporaryFile() as said:
        try:
            # A session of its own: Ctrl-C is for this process, which then ends the child. It takes it itself:
            # so, and with close_fds False, Python spawns and need not fork what maps a whole model.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, close_fds=False
            )
        except OSError as error:
            return [Verdict(name, "not checked", f"no process: {error.strerror}") for name in kernels]
        try:
            return _listen(process, kernels, limits, said)
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _listen(
    process: subprocess.Popen[bytes], kernels: Sequence[str], limits: CheckLimits, said: IO[bytes]
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
