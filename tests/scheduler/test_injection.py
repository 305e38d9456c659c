"""Whatever fails in the engine's thread, the server works on or ends: no thread dies in silence.

Every call of backend, sessions, pool, scheduler and MLX that a job makes fails in turn: once, and from then
on always. Afterwards a new job succeeds, or the thread is `unhealthy`, which ends the program
(`server/lifecycle.py`).
"""

from __future__ import annotations

import ast
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from small_model import tiny_model

import dsv4_mlx
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.machine.awake import Linger
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler import engine_thread, scheduler, session_pool
from dsv4_mlx.scheduler.admission import FairShare, SchedulerOptions, Waiting
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.scheduler import RunningSequence, Scheduler
from dsv4_mlx.scheduler.session_policy import SessionLimits
from dsv4_mlx.scheduler.session_pool import SessionPool
from scheduler.tiny import Heard, ScriptedBackend, TinyBackend, job

CLASSES = (
    TinyBackend, ScriptedBackend, Session, SessionRows, ModelState, Transformer, SessionPool, SessionLimits,
    Scheduler, RunningSequence, FairShare, Waiting, Linger,
)  # fmt: skip
FUNCTIONS = (
    (session_pool, "plan"),
    (session_pool, "growth"),
    (scheduler, "room_for_answer"),
    (engine_thread, "wanted"),
)
ERRORS = (MemoryError(), RuntimeError("[metal::malloc] Unable to allocate 1 bytes"), KeyError("a bug"))
SECONDS = 5.0  # until a failure must show
REACHED = {  # by the jobs here, on whatever model
    "dsv4_mlx.scheduler.session_pool.plan",
    *(f"SessionPool.{name}" for name in ("acquire", "may_go_on", "release")),
    *(f"Session.{name}" for name in ("fork_at", "capacity", "tokens", "cached_prefix")),
    *(f"Scheduler.{name}" for name in ("_fits", "_finish", "step")),
    "FairShare.next",
    "Waiting.admit",
    "Linger.idle",
}
ROOT = Path(dsv4_mlx.__file__).parent


def mlx_calls() -> list[str]:
    """Functions of MLX that the engine, model and scheduler call by name."""
    files = [path for part in ("engine", "model", "scheduler") for path in (ROOT / part).glob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    names = {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "mx"
    }
    return sorted(name for name in names if not isinstance(getattr(mx, name), type))


def points() -> list[tuple[Any, str]]:
    """What can fail: (where it hangs, its name)."""
    found: list[tuple[Any, str]] = [*FUNCTIONS, *((mx, name) for name in mlx_calls())]
    for owner in CLASSES:
        for name, value in vars(owner).items():
            usual = name.startswith("__") and name not in ("__call__", "__init__", "__len__", "__iter__")
            if not usual and (callable(value) or isinstance(value, property)):
                found.append((owner, name))
    return found


POINTS = points()
NAMES = [f"{owner.__name__}.{name}" for owner, name in POINTS]


class Fault:
    """Stands in for a call and fails once armed: `times` times, in the engine's thread or in a caller's."""

    def __init__(self, real: Any, error: Exception, times: float) -> None:
        self.real, self.error, self.left = real, error, times
        self.armed, self.hits = False, 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.armed and self.left > 0:
            self.left -= 1
            self.hits += 1
            raise self.error
        return self.real(*given, **named)


def inject(patch: pytest.MonkeyPatch, point: tuple[Any, str], error: Exception, times: float) -> Fault:
    owner, name = point
    value = vars(owner)[name]
    if isinstance(value, property):
        assert value.fget is not None
        fault = Fault(value.fget, error, times)
        patch.setattr(owner, name, property(lambda self: fault(self)))
    else:
        fault = Fault(value, error, times)
        patch.setattr(owner, name, lambda *given, **named: fault(*given, **named))
    return fault


def asked(worker: EngineThread, wanted: Any, then: Callable[[], None] = lambda: None) -> str:
    """How a job ended: its reason, "refused", or "gone" where the thread is out of order."""
    heard = Heard()
    try:
        ticket = worker.submit(wanted, heard)
    except Exception:  # in the caller's thread: the request's own 500
        return "refused"
    end = time.monotonic() + SECONDS
    while wanted.hint and not heard.tokens and heard.end is None and worker.state == "ready":
        assert time.monotonic() < end, "a request hangs"
        time.sleep(0.001)
    then()
    if wanted.hint:
        ticket.cancel()
    while heard.end is None and worker.state == "ready" and time.monotonic() < end:
        time.sleep(0.001)
    assert heard.end is not None or worker.state == "unhealthy", "a request hangs"
    return heard.end.reason if heard.end is not None else "gone"


def work(worker: EngineThread) -> None:
    """New, continued, branched, refused and cancelled jobs, two at a time."""
    first = [10 + at % 200 for at in range(520)]
    asked(worker, job(first, 4))

    def branch() -> None:
        asked(worker, job([*first, 7], 3))

    asked(worker, job([*first, 9, 9], 3000, hint="leaves"), branch)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.mark.parametrize("at", range(len(POINTS)), ids=NAMES)
def test_a_failure_is_a_jobs_own_or_ends_the_program(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """MLX's calls in a small model; the others in one that computes nothing."""
    kind = TinyBackend if POINTS[at][0] is mx else ScriptedBackend
    fails(monkeypatch, kind(model), at, [(ERRORS[at % 3], 1), (ERRORS[(at + 1) % 3], float("inf"))])


@pytest.mark.long
@pytest.mark.parametrize("at", range(len(POINTS)), ids=NAMES)
def test_each_kind_of_failure_in_a_real_model(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    fails(monkeypatch, TinyBackend(model), at, itertools.product(ERRORS, (1, float("inf"))))


def fails(
    monkeypatch: pytest.MonkeyPatch, backend: TinyBackend, at: int, ways: Iterable[tuple[Exception, float]]
) -> None:
    for error, times in ways:
        with monkeypatch.context() as patch:
            fault = inject(patch, POINTS[at], error, times)
            worker = EngineThread(backend, SchedulerOptions(active=2)).start()
            end = time.monotonic() + SECONDS
            while worker.state == "loading" and time.monotonic() < end:
                time.sleep(0.001)
            assert worker.state == "ready"
            fault.armed = True
            work(worker)
            fault.armed = False
            worker.call(lambda pool: None)
            worker.probe(SECONDS)  # what the last failure means is known
            assert fault.hits or NAMES[at] not in REACHED
            if worker.state == "ready":
                ended = asked(worker, job([5, 6, 7], 2))
                assert worker.probe(SECONDS).answered
                assert ended == "length" and not worker.stats().active
                assert worker.close(0, SECONDS)
            else:
                assert worker.state == "unhealthy" and worker.error is not None
                assert worker.close(0, SECONDS) and worker.state in ("unhealthy", "closed")
