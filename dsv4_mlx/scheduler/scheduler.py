"""Jobs on a backend, several at a time: the engine thread's side, and no threads in it.

`step` does at most one prefill chunk or one token of one job; between two steps everything can change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from dsv4_mlx.engine.decode import Event, Finished, Reason, Token
from dsv4_mlx.engine.session import SessionRows, room_for_answer
from dsv4_mlx.errors import DoesNotFit
from dsv4_mlx.scheduler.admission import FairShare, SchedulerOptions, Waiting
from dsv4_mlx.scheduler.backend import Backend, Pause, Run
from dsv4_mlx.scheduler.request import Emit, GenerationRequest, Unavailable
from dsv4_mlx.scheduler.session_pool import Lease, SessionPool


class Left(Exception):
    """A job was cancelled between two layers of its prefill."""


@dataclass(eq=False)
class RunningSequence:
    """A job on its way."""

    job: GenerationRequest
    emit: Emit
    since: float  # time.monotonic() when it came
    cancelled: bool = False  # set by any thread
    run: Run | None = None
    lease: Lease | None = None
    until: float = 0.0  # a pause lasts until then
    blocked: bool = False  # needs memory that another job has

    def check(self) -> None:
        """Raise Left if it was cancelled."""
        if self.cancelled:
            raise Left


@dataclass
class Counts:
    """Since the start. `prompt` and `cached`: tokens of prompts that were taken in whole."""

    finished: dict[Reason, int] = field(
        default_factory=lambda: dict.fromkeys(get_args(Reason), 0)  # all at once: other threads copy it
    )
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    failures: int = 0


class Scheduler:
    """`broken` after two failures of the device in a row: then nothing of it is trusted."""

    def __init__(
        self, backend: Backend, options: SchedulerOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.backend, self.options, self.clock = backend, options, clock
        self.pool = SessionPool(backend.limits(max(options.sessions, options.active)), backend.session)
        self.waiting: Waiting[RunningSequence] = Waiting()
        self.active: list[RunningSequence] = []
        self.counts = Counts()
        self.broken: BaseException | None = None
        self.progress = clock()  # when something was last done
        self._shares: FairShare[RunningSequence] = FairShare()
        self._in_a_row = 0
        self._changed = False  # since nobody could come in: a prompt is compared with every session for it

    def add(self, entry: RunningSequence) -> None:
        self.waiting.add(entry, entry.job.hint)
        self._changed = True

    def step(self) -> float | None:
        """Do what can be done now; seconds until there may be more (0: at once; None: nothing is left)."""
        now = self.clock()
        self._clean(now)
        self._admit()
        ready = [entry for entry in self.active if entry.until <= now and not entry.blocked]
        if ready:
            self._advance(self._shares.next(ready))
            return 0.0
        times = [entry.until for entry in self.active if not entry.blocked]
        times += [entry.since + self.options.patience for entry in self.waiting]
        return max(0.0, min(times) - now) if times else None

    def end_all(self, error: BaseException) -> None:
        """Finish everything with `error`."""
        for entry in list(self.waiting):
            self.waiting.remove(entry)
            self._say(entry, Finished("error", error))
        for entry in list(self.active):
            self._finish(entry, "error", error)

    def _clean(self, now: float) -> None:
        """End what was cancelled, or waited too long."""
        for entry in [one for one in self.active if one.cancelled]:
            self._finish(entry, "cancelled")
        for entry in list(self.waiting):
            if entry.cancelled or now - entry.since >= self.options.patience:
                self.waiting.remove(entry)
                self._changed = True
                waited = Unavailable(f"the request waited {self.options.patience:.0f} s for its turn")
                self._say(entry, Finished("cancelled") if entry.cancelled else Finished("error", waited))

    def _admit(self) -> None:
        while self._changed and len(self.active) < self.options.active:
            entry = self.waiting.admit([one.job.hint for one in self.active], self._fits)
            if entry is None:
                self._changed = False
                return
            self.active.append(entry)
            self._shares.add(entry)
            self.progress = self.clock()

    def _fits(self, entry: RunningSequence) -> bool:
        prompt = entry.job.prompt
        most = room_for_answer(len(prompt), self.backend.context, entry.job.max_tokens)
        entry.lease = self.pool.acquire(prompt, most)
        if entry.lease is not None:
            rows = SessionRows(entry.lease.session, self._chunks_per_step, entry.check)
            entry.run = self.backend.run(rows, entry.job)
        return entry.lease is not None

    def _chunks_per_step(self) -> int | None:
        """Alone, a prefill takes its chunks as the model likes them best; others should not wait for it."""
        return 1 if len(self.active) > 1 else None

    def _advance(self, entry: RunningSequence) -> None:
        """One step of one job, whatever comes of it."""
        run, lease = entry.run, entry.lease
        if run is None or lease is None:
            raise RuntimeError("a job that was not admitted can't run")
        if not self.pool.may_go_on(lease):
            entry.blocked = True
            return
        begun = self.clock()
        try:
            step = next(run)
        except StopIteration as end:
            self._in_a_row = 0
            self._finish(entry, end.value)
            return
        except Left:
            self._finish(entry, "cancelled")
            return
        except Exception as error:  # contained: the other jobs go on
            self._fail(entry, error)
            return
        self.progress = self.clock()
        self._shares.charge(entry, self.progress - begun)
        if isinstance(step, Pause):
            entry.until = step.until
            return
        if isinstance(step, Token):
            self.counts.generated += 1
        elif step.done == step.total:
            self.counts.prompt += len(entry.job.prompt)
            self.counts.cached += step.cached
        self._say(entry, step)

    def _fail(self, entry: RunningSequence, error: Exception) -> None:
        """A session that a failed step left is empty (session.py): then it was the device, or a bug."""
        if entry.lease is not None and not entry.lease.session.tokens and not isinstance(error, DoesNotFit):
            self.counts.failures += 1
            self._in_a_row += 1
            self.backend.recover()
        self._finish(entry, "error", error)
        if self._in_a_row >= 2:
            self.broken = error

    def _finish(self, entry: RunningSequence, reason: Reason, error: BaseException | None = None) -> None:
        self.active.remove(entry)
        self._shares.remove(entry)
        if entry.run is not None:
            entry.run.close()
        if entry.lease is not None:
            self.pool.release(entry.lease)
        entry.run = entry.lease = None
        self._changed = True
        for other in self.active:
            other.blocked = False
        self._say(entry, Finished(reason, error))

    def _say(self, entry: RunningSequence, event: Event) -> None:
        if isinstance(event, Finished):
            self.counts.finished[event.reason] += 1
        try:
            entry.emit(event)
        except Exception:  # a listener that is gone must not stop the thread
            entry.cancelled = True
