"""The one thread that owns the engine. MLX's streams belong to a thread, so all of its work happens here.

What the thread does with jobs is scheduler.py's; here is what other threads may call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dsv4_mlx.engine.session import check_tokens
from dsv4_mlx.errors import DoesNotFit, UsageError
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import Backend
from dsv4_mlx.scheduler.linger import Linger
from dsv4_mlx.scheduler.request import Emit, GenerationRequest, QueueFull, Reason, Unavailable
from dsv4_mlx.scheduler.scheduler import Counts, RunningSequence, Scheduler

State = Literal["loading", "ready", "unhealthy", "closed"]
STALLED = 120.0  # seconds without progress while jobs are active: then something hangs
TOP = 20  # most alternatives of a token
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

    `linger` is told of work by the engine's thread.
    """

    def __init__(
        self, backend: Backend, options: SchedulerOptions | None = None, linger: Linger | None = None
    ) -> None:
        self.backend, self.options = backend, options or SchedulerOptions()
        self.state: State = "loading"
        self.error: BaseException | None = None  # why it could not load, or is unhealthy
        self.loaded = (0, 0)  # bytes of the model loaded so far, and in all
        self._wake = threading.Condition()
        self._news = False
        self._inbox: list[RunningSequence] = []
        self._probes: list[threading.Event] = []
        self._closing: float | None = None  # time.monotonic() at which jobs are ended
        self._submitted = self._refused = 0
        self._runner: Scheduler | None = None
        self._linger = linger or Linger()
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
                raise Unavailable(f"the model is {closing}", next="try again later")
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

    def probe(self, timeout: float) -> Health:
        """Ask the thread for a sign of life, and wait for it up to `timeout` seconds."""
        answer = threading.Event()
        runner = self._runner
        if runner is None:
            return Health(self.state, self._thread.is_alive(), 0.0)
        with self._wake:
            self._probes.append(answer)
            self._notify()
        answered = answer.wait(timeout)
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

    def close(self, grace: float) -> bool:
        """Take no more jobs, let active ones run for `grace` seconds, end the rest; whether the thread ended.

        A second call may shorten the grace of the first.
        """
        with self._wake:
            end = time.monotonic() + grace
            self._closing = end if self._closing is None else min(end, self._closing)
            self._notify()
        if self._thread.is_alive():
            self._thread.join(grace + 30)
        return not self._thread.is_alive()

    def _notify(self) -> None:
        self._news = True
        self._wake.notify()

    def _check(self, job: GenerationRequest) -> None:
        context, vocabulary = self.backend.context, self.backend.vocabulary
        check_tokens(job.prompt, vocabulary, context)
        if len(job.prompt) == context:
            raise DoesNotFit(
                f"the prompt has {len(job.prompt)} tokens and fills the context: an answer has no room",
                next="shorten the prompt, or give a larger --context",
            )
        job.sampling.check(vocabulary)
        limits = {"max_tokens": job.max_tokens, "logprobs": job.logprobs, "think_budget": job.think_budget}
        for name, value in limits.items():
            most = TOP if name == "logprobs" else None
            if value is not None and (value < 0 or (most is not None and value > most)):
                raise UsageError(f"{name} is {value}, expected 0 {f'to {most}' if most else 'or more'}")

    # From here on: the engine's thread.

    def _main(self) -> None:
        def progress(done: int, total: int) -> None:
            self.loaded = done, total
            if self._closing is not None:
                raise Unavailable("the model is shutting down")

        try:
            self.backend.open(progress)
            self._runner = Scheduler(self.backend, self.options)
            self.state = "ready"
        except Exception as error:  # whoever asks for the state is told; the program decides what to do
            self.error, self.state = error, "unhealthy"
        try:
            self._loop()
        finally:
            self._linger.close()
            self.backend.close()
            self.state = "closed"
            self._answer_probes()

    def _loop(self) -> None:
        delay: float | None = None
        while True:
            with self._wake:
                if not self._news and delay != 0:
                    self._wake.wait(delay)
                self._news = False
                inbox, self._inbox = self._inbox, []
                closing = self._closing
            self._answer_probes()
            runner = self._runner
            if runner is None:
                if closing is not None:
                    return
                continue
            if inbox:
                self._linger.busy()
            for entry in inbox:
                runner.add(entry)
            if runner.broken is not None:
                self.error, self.state = runner.broken, "unhealthy"
                runner.end_all(Unavailable("the device failed twice in a row", next="restart the server"))
            over = closing is not None and time.monotonic() >= closing
            if over or (closing is not None and not runner.active and not len(runner.waiting)):
                runner.end_all(Unavailable("the model is shutting down"))
                return
            delay = runner.step()
            if delay is None:
                delay = self._linger.idle()
            if closing is not None:
                rest = max(0.0, closing - time.monotonic())
                delay = rest if delay is None else min(delay, rest)

    def _answer_probes(self) -> None:
        with self._wake:
            probes, self._probes = self._probes, []
        for probe in probes:
            probe.set()
