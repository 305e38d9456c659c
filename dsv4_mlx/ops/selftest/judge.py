"""One kernel against its reference, in this process: every case, then the time of the largest.

The process in which kernels are tried. It writes a line as each begins, after a case, at its end.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch, Launcher
from dsv4_mlx.ops.kernels.op import Case, KernelOp, disagreement
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Verdict, resolve
from dsv4_mlx.ops.table import REFERENCE

_REPEATS = 5
_ENOUGH = 1.0  # seconds of timing after which no further repeat is made


def judge(op: KernelOp, launcher: Launcher, limits: CheckLimits, alive: Callable[[], None]) -> Verdict:
    """Run all cases, calling `alive` after each. What the launcher raises is a verdict too.

    A crash or a hang is for the caller to notice.
    """
    reference = getattr(REFERENCE, op.name)
    cases = op.cases()
    largest: tuple[int, Case] | None = None
    for case in cases:
        moved = 0

        def counting(launch: Launch) -> Sequence[mx.array]:
            nonlocal moved
            moved += sum(launch.loaded().values()) + sum(launch.stored().values())
            return launcher(launch)

        try:
            found = op.call(counting, *case.arguments, **case.options)
            mx.eval(arrays(found))
        except Exception as error:
            return Verdict(op.name, "fails", f"{case.name}: {_first_line(error)}", len(cases))
        expected = reference(*case.arguments, **case.options)
        wrong = disagreement(found, expected, case.tolerance)
        alive()
        if wrong is not None:
            return Verdict(op.name, "differs", f"{case.name}: {wrong}", len(cases))
        if largest is None or moved > largest[0]:
            largest = moved, case
    if largest is None:
        return Verdict(op.name, "not checked", "it names no cases")
    return _timed(op, reference, launcher, largest, limits, len(cases))


def _timed(
    op: KernelOp,
    reference: Callable[..., Any],
    launcher: Launcher,
    largest: tuple[int, Case],
    limits: CheckLimits,
    cases: int,
) -> Verdict:
    moved, case = largest
    ours: list[float] = []
    theirs: list[float] = []
    while len(ours) < _REPEATS and sum(ours) + sum(theirs) < _ENOUGH:
        ours.append(_seconds(lambda: op.call(launcher, *case.arguments, **case.options)))
        theirs.append(_seconds(lambda: reference(*case.arguments, **case.options)))
    kernel, plain = median(ours), median(theirs)
    slow = kernel > limits.times * plain + limits.slack
    detail = f"{kernel * 1e3:.2f} ms, the reference {plain * 1e3:.2f} ms ({case.name})" if slow else ""
    return Verdict(op.name, "slow" if slow else "works", detail, cases, kernel, plain, moved)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    mx.eval(arrays(run()))
    return time.perf_counter() - start


def arrays(tree: Any) -> list[mx.array]:
    """The arrays [...] of a result, however it is nested."""
    if isinstance(tree, mx.array):
        return [tree]
    pairs: list[tuple[str, Any]] = tree_flatten(tree)  # type: ignore[assignment]
    return [leaf for _, leaf in pairs if isinstance(leaf, mx.array)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def child(arguments: list[str]) -> None:
    """arguments: one JSON object with launcher, limits and kernels. Reports go to the real stdout only."""
    asked = json.loads(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:

        def say(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=report, flush=True)

        os.dup2(2, 1)  # whatever a library prints is not a report
        launcher, limits = resolve(asked["launcher"]), CheckLimits(**asked["limits"])
        ops = {op.name: op for op in ALL}
        for name in asked["kernels"]:
            say({"begins": name})
            say(asdict(judge(ops[name], launcher, limits, alive=lambda: say({"alive": True}))))


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it goes, a kernel that hangs goes too."""
    os.read(0, 1)
    os._exit(1)
