"""The one thread that owns the engine: loads it, then runs jobs, several at a time, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from dsv4_mlx.serving.job import Emit, Job

State = Literal["loading", "ready", "unhealthy", "closed"]


@dataclass(frozen=True)
class Health:
    """`answered`: the thread replied within the time given. `stalled`: seconds since a job made progress."""

    state: State
    answered: bool
    stalled: float


@dataclass(frozen=True)
class Stats:
    """Counters since the start, and what is there now."""

    queued: int
    active: int
    sessions: int
    session_tokens: int
    session_bytes: int
    submitted: int
    finished: dict[str, int]  # by Reason
    refused: int
    prompt_tokens: int  # of prompts that were taken in, cached ones included
    cached_tokens: int
    generated_tokens: int
    evictions: int
    forks: int


class Ticket(Protocol):
    def cancel(self) -> None:
        """End the job at the next token or prefill chunk, or at once where it waits. Any thread, any time."""


class Worker(Protocol):
    """To be made by `worker.start(...)`; this is what the server may rely on."""

    @property
    def state(self) -> State: ...

    @property
    def loaded(self) -> tuple[int, int]:
        """Bytes of the model loaded so far, and in all."""

    @property
    def context(self) -> int:
        """Tokens a prompt and its answer may have together. Once ready."""

    def submit(self, job: Job, emit: Emit) -> Ticket:
        """Raises QueueFull, Unavailable; DoesNotFit, InputError, UsageError for a job that can't run."""

    def probe(self, timeout: float) -> Health: ...

    def stats(self) -> Stats: ...

    def close(self, grace: float) -> bool:
        """Take no more jobs, let active ones run for `grace` seconds, end the rest; whether all ended."""
