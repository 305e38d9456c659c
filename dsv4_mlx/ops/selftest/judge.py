"""One kernel against its reference, in this process: the calls that the model makes, then their time.

The process in which kernels are tried. It writes a line as each begins, after a case, at its end.

A kernel's values are held against a reference of float32 on the CPU: whatever the GPU does to products, the
reference does not. Its time is held against the reference where the model would run it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch, Launcher
from dsv4_mlx.ops.kernels.op import Case, KernelOp, disagreement
from dsv4_mlx.ops.selftest.model_shape import ModelShape
from dsv4_mlx.ops.selftest.true_cases import true_cases
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Verdict, resolve
from dsv4_mlx.ops.table import REFERENCE

_REPEATS = 5
_ENOUGH = 1.0  # seconds of timing after which no further repeat is made
_QUEUE, _QUEUED = 20, 0.02  # calls in a queue at most, and seconds after which no more are added
_HALF = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}  # half a step and half a step, of the largest
_NARROW = tuple(_HALF)

Alive = Callable[[], None]


def judge(
    op: KernelOp, launcher: Launcher, limits: CheckLimits, shape: ModelShape, alive: Alive,
    edges: bool = False, alone: Callable[[], Any] | None = None,
) -> Verdict:  # fmt: skip
    """Run all calls of a model of `shape`, with `edges` the kernel's own cases too, calling `alive` after
    each. What the launcher raises is a verdict too. Nothing else is timed while `alone()` is entered.

    A crash or a hang is for the caller to notice.
    """
    cases = true_cases(op.name, shape)
    compared = _possible(op, [*cases.compared, *(op.cases() if edges else ())])
    for case in compared:
        try:
            found = op.call(launcher, *case.arguments, **case.options)
            mx.eval(arrays(found))
        except Exception as error:
            return Verdict(op.name, "fails", f"{case.name}: {_first_line(error)}", len(compared))
        wrong = differs(found, wide_reference(op.name, case), case)
        alive()
        if wrong is not None:
            return Verdict(op.name, "differs", f"{case.name}: {wrong}", len(compared))
    if not compared:
        return Verdict(op.name, "not checked", "it has no call that this model makes")
    with alone() if alone is not None else nullcontext():
        return _timed(op, launcher, _possible(op, cases.timed), limits, len(compared), alive)


def _possible(op: KernelOp, cases: Sequence[Case]) -> list[Case]:
    """Those that would not go to the reference anyway."""
    return [case for case in cases if op.refuses(*case.arguments, **case.options) is None]


def wide_reference(name: str, case: Case) -> Any:
    """The reference's results for the same numbers, computed in float32 on the CPU."""

    def wide(value: Any) -> Any:
        if isinstance(value, mx.Dtype):
            return mx.float32 if value in _NARROW else value
        return value.astype(mx.float32) if isinstance(value, mx.array) and value.dtype in _NARROW else value

    with mx.stream(mx.cpu):
        options = {key: wide(value) for key, value in case.options.items()}
        result = getattr(REFERENCE, name)(*tree_map(wide, case.arguments), **options)
        mx.eval(arrays(result))
    return result


def differs(found: Any, expected: Any, case: Case) -> str | None:
    """What is wrong with the arrays of `found`, given the wide reference's; None if nothing is.

    Narrow results are held against `expected` rounded, which may go to the other side of an edge.
    """
    with mx.stream(mx.cpu):
        for ours, theirs in zip(arrays(found), arrays(expected), strict=True):
            tolerance = case.tolerance
            if ours.dtype in _HALF:
                tolerance = replace(tolerance, relative=max(tolerance.relative, _HALF[ours.dtype]))
                theirs = theirs.astype(ours.dtype)
            wrong = disagreement(ours, theirs, tolerance)
            if wrong is not None:
                return wrong
    return None


def _timed(
    op: KernelOp, launcher: Launcher, cases: Sequence[Case], limits: CheckLimits, compared: int, alive: Alive
) -> Verdict:
    """Each at its size; the times of the one that moves most."""
    reference, largest = getattr(REFERENCE, op.name), Verdict(op.name, "works", "", compared)
    for case in cases:
        mx.eval(arrays([case.arguments, case.options]))
        kernel, plain = _medians(
            partial(op.call, launcher, *case.arguments, **case.options),
            partial(reference, *case.arguments, **case.options),
        )
        alive()
        moved, slow = _moved(op, case), kernel > limits.times * plain + limits.slack
        detail = f"{kernel * 1e3:.2f} ms, the reference {plain * 1e3:.2f} ms ({case.name})" if slow else ""
        outcome = Verdict(op.name, "slow" if slow else "works", detail, compared, kernel, plain, moved)
        if slow:
            return outcome
        if largest.bytes is None or moved > largest.bytes:
            largest = outcome
    return largest


def _moved(op: KernelOp, case: Case) -> int:
    """Bytes that a call reads and writes."""
    moved = 0

    def count(launch: Launch) -> Sequence[mx.array]:
        nonlocal moved
        moved += sum(launch.loaded().values()) + sum(launch.stored().values())
        return [mx.zeros(shape, dtype) for shape, dtype in zip(launch.shapes, launch.dtypes, strict=True)]

    op.call(count, *case.arguments, **case.options)
    return moved


def _medians(kernel: Callable[[], Any], plain: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call of each, by turns. The first of each, which compiles, is not counted."""
    begin, times = time.perf_counter(), (list[float](), list[float]())
    runs = [(run, _size(run), found) for run, found in zip((kernel, plain), times, strict=True)]
    while len(times[0]) < _REPEATS and (not times[0] or time.perf_counter() - begin < _ENOUGH):
        for run, size, found in runs:
            found.append(_queue(run, size))
    return median(times[0]), median(times[1])


def _size(run: Callable[[], Any]) -> int:
    """Calls for a queue."""
    _queue(run, 1)
    begin = time.perf_counter()
    _queue(run, 1)
    return max(1, min(_QUEUE, int(_QUEUED / (time.perf_counter() - begin))))


def _queue(run: Callable[[], Any], count: int) -> float:
    """Seconds of one of `count` calls that wait for each other on the device and not for the host."""
    waiting = [arrays(run()) for _ in range(count)]
    begin = time.perf_counter()
    mx.eval(waiting)
    return (time.perf_counter() - begin) / count


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
    """arguments: one JSON object, as supervisor.check makes it. Reports go to the real stdout only."""
    asked = json.loads(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:

        def say(message: Mapping[str, Any]) -> None:
            print(json.dumps(message), file=report, flush=True)

        def alive() -> None:
            say({"alive": True})

        os.dup2(2, 1)  # whatever a library prints is not a report
        launcher, limits = resolve(asked["launcher"]), CheckLimits(**asked["limits"])
        shape, ops = ModelShape(**asked["shape"]), {op.name: op for op in ALL}
        for name in asked["kernels"]:
            say({"begins": name})
            found = judge(
                ops[name], launcher, limits, shape, alive, asked["edges"], lambda: _turn(asked["lock"], alive)
            )
            say(asdict(found))


@contextmanager
def _turn(path: str, alive: Alive) -> Iterator[None]:
    """Within, no other child times anything. One that ends has given its turn back."""
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                alive()
                time.sleep(0.1)
        yield


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it goes, a kernel that hangs goes too."""
    os.read(0, 1)
    os._exit(1)
