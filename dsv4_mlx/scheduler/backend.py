"""What the worker drives: a model with sessions, or a script that stands in for one (replay.py)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.chooser import GenerationLimits
from dsv4_mlx.engine.decode import Ended, PrefillProgress, Token
from dsv4_mlx.engine.engine import Engine, weight_bytes
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.generate import run
from dsv4_mlx.engine.memory import state_bytes, workspace
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_file import identity
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.errors import Progress
from dsv4_mlx.machine.limits import memory_limit
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.session_policy import SessionLimits
from dsv4_mlx.scheduler.session_pool import Reusable
from dsv4_mlx.tokenizer.template import Prompts

LOOK_EVERY = 5.0  # seconds, at the machine's memory while nothing is asked for
GROWTH = 2048  # tokens by which sessions grow: short ones stay small


@dataclass(frozen=True)
class Pause:
    """Nothing to do before `until`, a time.monotonic()."""

    until: float


Run = Generator[PrefillProgress | Token | Pause, None, Ended]


class Backend(Protocol):
    """Made in any thread. `open` and what works on sessions belong to the worker's."""

    def open(self, progress: Progress) -> None:
        """Load; `progress(done, total)` counts bytes and may raise. Raises Dsv4Error."""

    @property
    def prompts(self) -> Prompts:
        """Template and tokenizer. Any thread, once open."""

    @property
    def context(self) -> int:
        """Any thread, once open."""

    @property
    def vocabulary(self) -> int:
        """Any thread, once open."""

    def limits(self, count: int) -> SessionLimits:
        """Of at most `count` sessions."""

    def session(self) -> Reusable: ...

    def run(self, rows: SessionRows, job: GenerationRequest) -> Run:
        """The job's steps, as engine.generate.run; `rows` answer for a session of `session`."""

    def memory(self) -> dict[str, int]:
        """Bytes in use, by kind. Any thread."""

    def paging(self) -> dict[str, float]:
        """What reading experts from disk did (paging.stats), over all layers; empty without. Any thread."""

    def rest(self) -> float | None:
        """Nothing is asked for: look after memory. Seconds after which to be called again; None: never."""

    def recover(self) -> None:
        """After a failure: give back what can be given back."""

    def close(self) -> None:
        """Nothing is used after it."""


class ModelBackend:
    """The real engine. `session_memory`: bytes for all sessions; None: what the model leaves."""

    def __init__(self, folder: Path, options: EngineOptions, session_memory: int | None = None) -> None:
        self._folder, self._options, self._session_memory = folder, options, session_memory
        self._free = 0
        self._engine: Engine | None = None

    def open(self, progress: Progress) -> None:
        limit = memory_limit()
        self._engine = Engine.open(self._folder, self._options, progress)
        self._free = limit - mx.get_active_memory() - workspace(weight_bytes(self._engine.manifest))

    @property
    def engine(self) -> Engine:
        """Once open."""
        if self._engine is None:
            raise RuntimeError("the model is not open yet")
        return self._engine

    @property
    def prompts(self) -> Prompts:
        return self.engine.prompts

    @property
    def context(self) -> int:
        return self.engine.context

    @property
    def vocabulary(self) -> int:
        return self.engine.config.vocab_size

    def limits(self, count: int) -> SessionLimits:
        engine = self.engine
        budget = self._free if self._session_memory is None else self._session_memory
        return session_limits(engine.config, engine.model.dtype.size, budget, count, engine.context)

    def session(self) -> Session:
        return self.engine.session(GROWTH)

    def run(self, rows: SessionRows, job: GenerationRequest) -> Run:
        return run(rows, job.prompt, job.sampling, wanted(job))

    def memory(self) -> dict[str, int]:
        return {
            "active": mx.get_active_memory(),
            "peak": mx.get_peak_memory(),
            "cache": mx.get_cache_memory(),
        }

    def paging(self) -> dict[str, float]:
        pager = None if self._engine is None else self._engine.pager
        return {} if pager is None else pager.sums()

    @property
    def notice(self) -> str:
        """How many experts are in memory and why, for people; "" where all are."""
        return self.engine.expert_memory

    def recently(self) -> str:
        """How paged experts did since the last call, for people; "" where all are in memory."""
        pager = self.engine.pager
        return "" if pager is None else pager.recently()

    def identity(self) -> str:
        """What a saved state must have been computed with to be taken up here."""
        options = replace(self._options, ops=self.engine.model.ops)
        return identity(self.engine.manifest, options, self.session())

    def rest(self) -> float | None:
        self.engine.rest()
        return LOOK_EVERY

    def recover(self) -> None:
        mx.clear_cache()

    def close(self) -> None:
        if self._engine is not None and self._engine.pager is not None:
            self._engine.pager.close()


def wanted(job: GenerationRequest) -> GenerationLimits:
    """Raises UsageError."""
    return GenerationLimits(
        job.max_tokens, job.constraint, job.logprobs, job.think_budget, job.prompt_logprobs
    )


def session_limits(
    config: ModelConfig, element: int, budget: int, count: int, context: int, growth: int = GROWTH
) -> SessionLimits:
    """Limits for sessions of `element`-byte numbers that grow by `growth` tokens; the budget is at least one
    session of `context`."""

    def cost(tokens: int) -> int:
        return state_bytes(config, tokens, element, growth).session

    return SessionLimits(max(budget, cost(context)), count, context, cost)
