"""Jobs on a backend, several at a time: the engine thread's side, and no threads in it.

`step` does at most one prefill chunk or one token of one job; between two steps everything can change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from dsv4_mlx.engine.decode import Event, Finished, Reason, Token
from dsv4_mlx.engine.prompt_room import room_for_answer
from dsv4_mlx.engine.session_rows import SessionRows
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
    error: Exception | None = None  # why it could not begin
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

    def everybody(self) -> list[RunningSequence]:
        """Jobs that run or wait."""
        return [*self.active, *self.waiting]

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
            if entry.error is not None:
                self._fail(entry, entry.error)

    def _fits(self, entry: RunningSequence) -> bool:
        """Whether the job comes in now; one that fails at it comes in to be ended."""
        prompt = entry.job.prompt
        try:
            most = room_for_answer(len(prompt), self.backend.context, entry.job.max_tokens)
            entry.lease = self.pool.acquire(prompt, most)
            if entry.lease is not None:
                rows = SessionRows(entry.lease.session, self._chunks_per_step, entry.check)
                entry.run = self.backend.run(rows, entry.job)
        except Exception as error:  # memory for a session or a branch of one, or a bug: this job's alone
            entry.error = error
        return entry.lease is not None or entry.error is not None

    def _chunks_per_step(self) -> int | None:
        """Alone, a prefill takes its chunks as the model likes them best; others should not wait for it."""
        return 1 if len(self.active) > 1 else None

    def _advance(self, entry: RunningSequence) -> None:
        """One step of one job, whatever comes of it."""
        run, lease = entry.run, entry.lease
        if run is None or lease is None:
            raise RuntimeError("a job that was not admitted can't run")
        begun = self.clock()
        try:
            if not self.pool.may_go_on(lease):
                entry.blocked = True
                return
            step = next(run)
        except StopIteration as end:
            if self._finish(entry, end.value):
                self._in_a_row = 0
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
        """A session that a failed step left is empty (session.py), and one that could not be made is missing:
        then it was the device, or a bug."""
        session = entry.lease.session if entry.lease is not None and entry.error is None else None
        if (session is None or not session.tokens) and not isinstance(error, DoesNotFit):
            self._distrust(error)
        self._finish(entry, "error", error)

    def _distrust(self, error: Exception) -> None:
        self.counts.failures += 1
        self._in_a_row += 1
        if self._in_a_row >= 2:
            self.broken = error
        try:
            self.backend.recover()
        except Exception as worse:
            self.broken = worse

    def _finish(self, entry: RunningSequence, reason: Reason, error: BaseException | None = None) -> bool:
        """End a job; whether its session could be given back. If not, it is lost and the job has failed."""
        self.active.remove(entry)
        self._shares.remove(entry)
        run, lease = entry.run, entry.lease
        entry.run = entry.lease = None
        failure: Exception | None = None
        try:
            if run is not None:
                run.close()
            if lease is not None and entry.error is None:
                self.pool.release(lease)
        except Exception as found:
            failure = found
        if lease is not None and (failure is not None or entry.error is not None):
            self.pool.drop(lease)
        if failure is not None:
            self._distrust(failure)
            reason, error = "error", error or failure
        self._changed = True
        for other in self.active:
            other.blocked = False
        self._say(entry, Finished(reason, error))
        return failure is None

    def _say(self, entry: RunningSequence, event: Event) -> None:
        if isinstance(event, Finished):
            self.counts.finished[event.reason] += 1
        try:
            entry.emit(event)
        except Exception:  # a listener that is gone must not stop the thread
            entry.cancelled = True
