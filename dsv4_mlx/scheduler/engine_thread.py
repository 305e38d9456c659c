"""The one thread that owns the engine. MLX's streams belong to a thread, so all of its work happens here.

What the thread does with jobs is scheduler.py's; here is what other threads may call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from dsv4_mlx.engine.decode import Finished, Reason
from dsv4_mlx.engine.prompt_room import check_prompt
from dsv4_mlx.machine.awake import Linger
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import Backend, wanted
from dsv4_mlx.scheduler.request import Emit, GenerationRequest, QueueFull, Unavailable
from dsv4_mlx.scheduler.scheduler import Counts, RunningSequence, Scheduler
from dsv4_mlx.scheduler.session_pool import SessionPool

T = TypeVar("T")
State = Literal["loading", "ready", "unhealthy", "closed"]
STALLED = 120.0  # seconds without progress while jobs are active: then something hangs
DESCRIBED: dict[State, str] = {
    "loading": "still loading",
    "ready": "ready",
    "unhealthy": "out of order",
    "closed": "shut down",
}


@dataclass(frozen=True)
class Health:
    """`answered`: the thread replied within the time given; a prefill chunk may take longer than that.
    `stalled`: seconds since a job made progress, 0 where none runs."""

    state: State
    answered: bool
    stalled: float


@dataclass(frozen=True)
class Stats:
    """What is there now, and counters since the start."""

    queued: int
    active: int
    sessions: int
    session_tokens: int
    session_bytes: int
    submitted: int
    refused: int
    finished: dict[Reason, int]
    prompt_tokens: int  # of prompts that were taken in whole, cached ones included
    cached_tokens: int
    generated_tokens: int
    evictions: int
    branches: int
    failures: int  # of the device
    memory: dict[str, int]  # bytes, by kind
    paging: dict[str, float]  # what reading experts from disk did, by name; empty without


class Ticket:
    """A job that was taken."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        """End the job at the next token or prefill chunk, at once where it waits. Any thread, any time."""
        self._cancel()


class EngineThread:
    """Loads a backend and runs jobs on it. `start` begins; `close` ends it for good.

    `linger` is told of work by the engine's thread, which also calls `watch` when `state` is another, or
    `loaded`.
    """

    def __init__(
        self,
        backend: Backend,
        options: SchedulerOptions | None = None,
        linger: Linger | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend, self.options = backend, options or SchedulerOptions()
        self.state: State = "loading"
        self.error: BaseException | None = None  # why it could not load, or is unhealthy
        self.loaded = (0, 0)  # bytes of the model loaded so far, and in all
        self._wake = threading.Condition()
        self._news = False
        self._inbox: list[RunningSequence] = []
        self._calls: list[Callable[[Scheduler | None], None]] = []
        self._closing: float | None = None  # time.monotonic() at which jobs are ended
        self._ended = False  # nothing runs in the thread any more
        self._submitted = self._refused = 0
        self._runner: Scheduler | None = None
        self._linger, self._watch = linger or Linger(), watch
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> EngineThread:
        self._thread.start()
        return self

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together. Once ready."""
        return self.backend.context

    def submit(self, job: GenerationRequest, emit: Emit) -> Ticket:
        """Take a job. `emit` is called in the engine's thread: it must not block.

        Raises QueueFull, Unavailable; DoesNotFit, InputError, UsageError for a job that can never run.
        """
        if self.state == "ready":
            self._check(job)
        entry = RunningSequence(job, emit, time.monotonic())
        with self._wake:
            runner = self._runner
            if self.state != "ready" or self._closing is not None or runner is None:
                self._refused += 1
                closing = "shutting down" if self._closing is not None else DESCRIBED[self.state]
                later = "start the program again" if self.state == "unhealthy" else "try again later"
                raise Unavailable(f"the model is {closing}", next=later)
            waiting = len(self._inbox) + len(runner.waiting)
            if waiting >= self.options.waiting + max(0, self.options.active - len(runner.active)):
                self._refused += 1
                raise QueueFull(waiting, 5.0)
            self._submitted += 1
            self._inbox.append(entry)
            self._notify()

        def cancel() -> None:
            entry.cancelled = True
            with self._wake:
                self._notify()

        return Ticket(cancel)

    def call(self, work: Callable[[SessionPool], T]) -> Future[T]:
        """Run `work` in the engine's thread: once the model is open, between two steps, before jobs that are
        submitted later. Where that can't be any more, the result is cancelled.
        """
        result: Future[T] = Future()

        def run(runner: Scheduler | None) -> None:
            if runner is None:
                result.cancel()
            if result.set_running_or_notify_cancel() and runner is not None:
                try:
                    result.set_result(work(runner.pool))
                except Exception as error:  # its caller's, and no reason for the thread to end
                    result.set_exception(error)

        with self._wake:
            ended = self._ended
            if not ended:
                self._calls.append(run)
                self._notify()
        if ended:
            run(None)
        return result

    def probe(self, timeout: float) -> Health:
        """Ask the thread for a sign of life, and wait for it up to `timeout` seconds."""
        runner = self._runner
        if runner is None:
            return Health(self.state, self._thread.is_alive(), 0.0)
        answered = not wait([self.call(lambda pool: None)], timeout).not_done
        stalled = time.monotonic() - runner.progress if runner.active and not answered else 0.0
        hangs = self.state == "ready" and (stalled > STALLED or not self._thread.is_alive())
        return Health("unhealthy" if hangs else self.state, answered, stalled)

    def stats(self) -> Stats:
        with self._wake:
            runner, inbox = self._runner, len(self._inbox)
            submitted, refused = self._submitted, self._refused
        pool = runner.pool if runner is not None else None
        held = pool.held if pool is not None else []
        counts = runner.counts if runner is not None else Counts()
        return Stats(
            queued=inbox + (len(runner.waiting) if runner is not None else 0),
            active=len(runner.active) if runner is not None else 0,
            sessions=len(held),
            session_tokens=sum(one.tokens for one in held),
            session_bytes=sum(one.bytes for one in held),
            submitted=submitted,
            refused=refused,
            finished=dict(counts.finished),
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            generated_tokens=counts.generated,
            evictions=pool.evictions if pool is not None else 0,
            branches=pool.branches if pool is not None else 0,
            failures=counts.failures,
            memory=self.backend.memory(),
            paging=self.backend.paging(),
        )

    def close(self, grace: float, wait: float = 30.0) -> bool:
        """Take no more jobs, let active ones run for `grace` seconds, end the rest; whether the thread ended
        within `wait` seconds after that.

        A second call may shorten the grace of the first.
        """
        with self._wake:
            end = time.monotonic() + grace
            self._closing = end if self._closing is None else min(end, self._closing)
            self._notify()
        if self._thread.is_alive():
            self._thread.join(grace + wait)
        return not self._thread.is_alive()

    def _notify(self) -> None:
        self._news = True
        self._wake.notify()

    def _check(self, job: GenerationRequest) -> None:
        vocabulary = self.backend.vocabulary
        check_prompt(job.prompt, vocabulary, self.backend.context)
        job.sampling.check(vocabulary)
        wanted(job)

    # From here on: the engine's thread.

    def _main(self) -> None:
        def progress(done: int, total: int) -> None:
            self.loaded = done, total
            self._watch()
            if self._closing is not None:
                raise Unavailable("the model is shutting down")

        try:
            self.backend.open(progress)
            self._runner = Scheduler(self.backend, self.options)
            self.state = "ready"
        except Exception as error:  # whoever asks for the state is told; the program decides what to do
            self.error, self.state = error, "unhealthy"
        try:
            self._watch()
            self._loop()
            self._linger.close()
            self.backend.close()
            self.state = "closed"
        except BaseException as error:  # outside every job: nothing of the engine can be trusted any more
            self._broke(error)
        finally:
            with self._wake:
                self._ended, calls = True, self._calls
            for call in calls:
                call(None)
            self._watch()

    def _broke(self, error: BaseException) -> None:
        """Every job is told, and who looks after `state` ends the program."""
        with self._wake:
            self.error, self.state = error, "unhealthy"
            entries, self._inbox = self._inbox, []
        with suppress(Exception):  # where even this fails, the program's end closes the connections
            entries += self._runner.everybody() if self._runner is not None else []
        for entry in entries:
            with suppress(Exception):  # a listener that is gone
                entry.emit(Finished("error", error))
        for end in (self._linger.close, self.backend.close):
            with suppress(Exception):
                end()

    def _loop(self) -> None:
        delay: float | None = 0
        while True:
            with self._wake:
                if not self._news and delay != 0:
                    self._wake.wait(delay)
                self._news = False
                inbox, self._inbox = self._inbox, []
                calls, self._calls = self._calls, []
                closing, runner = self._closing, self._runner
            if runner is not None:  # first: who is known is told of a failure
                for entry in inbox:
                    runner.add(entry)
            for call in calls:
                call(runner)
            if runner is None:
                if closing is not None:
                    return
                delay = None
                continue
            if inbox:
                self._linger.busy()
            if runner.broken is not None:
                self.error, self.state = runner.broken, "unhealthy"
                self._watch()
                runner.end_all(
                    Unavailable("the device failed twice in a row", next="start the program again")
                )
            over = closing is not None and time.monotonic() >= closing
            if over or (closing is not None and not runner.active and not len(runner.waiting)):
                runner.end_all(Unavailable("the model is shutting down"))
                return
            delay = runner.step()
            if delay is None:
                waits = self._linger.idle(), self.backend.rest()
                delay = min((wait for wait in waits if wait is not None), default=None)
            if closing is not None:
                rest = max(0.0, closing - time.monotonic())
                delay = rest if delay is None else min(delay, rest)
