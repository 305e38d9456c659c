"""The tiny random model as a backend, with what a test may want to go wrong; and a listener."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
from small_model import MARKERS, new_session, tiny_model, token_ids

from dsv4_mlx.engine.decode import Event, Finished, PrefillProgress, Token
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import Answerer, generate, run
from dsv4_mlx.engine.session import Session, SessionRows
from dsv4_mlx.errors import Progress
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import Run, session_limits, wanted
from dsv4_mlx.scheduler.replay import ScriptedRows, SilentModel
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.scheduler import RunningSequence, Scheduler
from dsv4_mlx.scheduler.session_policy import SessionLimits
from dsv4_mlx.tokenizer.template import Prompts

CONTEXT = 4096
GROWTH = 256
ENDLESS = {MARKERS.end: -900.0}  # a bias: the turn goes on until a limit


class TinyBackend:
    """As ModelBackend, of a model that is there already. `budget` 0: one session of the whole context."""

    def __init__(
        self,
        model: Transformer | None = None,
        budget: int = 10**9,
        context: int = CONTEXT,
        growth: int = GROWTH,
    ) -> None:
        self.model, self.budget = model or tiny_model(), budget
        self.context, self.growth = context, growth
        self.vocabulary = self.model.config.vocab_size
        self.before_open: Callable[[Progress], None] = lambda progress: None
        self.before_step: Callable[[GenerationRequest], None] = lambda job: None
        self.recovered = 0
        self.closed = False

    @property
    def prompts(self) -> Prompts:
        raise NotImplementedError("tokens only")

    def open(self, progress: Progress) -> None:
        self.before_open(progress)

    def limits(self, count: int) -> SessionLimits:
        return session_limits(self.model.config, 4, self.budget, count, self.context, self.growth)

    def session(self) -> Session:
        return new_session(self.model, self.context, self.growth)

    def answer(self, rows: SessionRows, job: GenerationRequest) -> Answerer:
        return rows

    def run(self, rows: SessionRows, job: GenerationRequest) -> Run:
        self.before_step(job)
        real = run(rows, job.prompt, job.sampling, wanted(job), self.answer(rows, job))
        while True:
            try:
                step = next(real)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            yield step
            self.before_step(job)

    def memory(self) -> dict[str, int]:
        return {}

    def paging(self) -> dict[str, float]:
        return {}

    def recover(self) -> None:
        self.recovered += 1

    def close(self) -> None:
        self.closed = True


class ScriptedBackend(TinyBackend):
    """Sessions that count tokens and compute nothing: for tests with many of them."""

    markers = MARKERS

    def script(self, job: GenerationRequest) -> list[int]:
        """What the job says: as long as it may, depending on its seed."""
        return token_ids(np.random.default_rng(job.sampling.seed), job.max_tokens or 0)

    def answer(self, rows: SessionRows, job: GenerationRequest) -> Answerer:
        return ScriptedRows(rows, self.script(job), MARKERS.end)

    def session(self) -> Session:
        return Session(SilentModel(self.model.config), self.context, self.markers, self.growth)


class Heard:
    """What a job said. From another thread: `wait`."""

    def __init__(self, then: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._then = then

    def __call__(self, event: Event) -> None:
        assert not self.events or not isinstance(self.events[-1], Finished), "something after the end"
        self.events.append(event)
        if isinstance(event, Finished):
            self._ended.put(None)
        self._then(event)

    def wait(self, seconds: float = 60) -> Heard:
        self._ended.get(timeout=seconds)
        return self

    @property
    def tokens(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, Token)]

    @property
    def end(self) -> Finished | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished) else None

    @property
    def cached(self) -> int:
        return next(event.cached for event in self.events if isinstance(event, PrefillProgress))


def job(
    prompt: list[int], most: int | None = 8, seed: int = 0, hint: str = "", **more: Any
) -> GenerationRequest:
    """A job that goes on for `most` tokens."""
    sampling = SamplingOptions(seed=seed, logit_bias=ENDLESS)
    return GenerationRequest(tuple(prompt), sampling, most, hint=hint, **more)


def runner(backend: TinyBackend, **options: Any) -> Scheduler:
    """Its clock ticks once a look, so that whose turn it is doesn't depend on this machine's other work."""
    ticks = itertools.count()
    return Scheduler(backend, SchedulerOptions(**options), lambda: next(ticks) / 1000)


def add(
    runner: Scheduler, job: GenerationRequest, heard: Heard | None = None
) -> tuple[RunningSequence, Heard]:
    heard = heard or Heard()
    entry = RunningSequence(job, heard, runner.clock())
    runner.add(entry)
    return entry, heard


def drain(runner: Scheduler) -> None:
    """Step until nothing is left."""
    while runner.active or len(runner.waiting):
        runner.step()


def alone(model: Transformer, job: GenerationRequest) -> list[int]:
    """What `generate` makes of a job."""
    return list(generate(new_session(model), list(job.prompt), job.sampling, max_tokens=job.max_tokens))
