"""What the server relies on of the engine thread (serving.worker.Worker)."""

from __future__ import annotations

from typing import Protocol

from dsv4_mlx.scheduler.engine_thread import Health, State, Stats
from dsv4_mlx.scheduler.request import Emit, GenerationRequest


class Cancels(Protocol):
    def cancel(self) -> None:
        """End the job soon; any thread, any time, more than once."""


class EngineService(Protocol):
    """Any thread may call it."""

    state: State
    error: BaseException | None  # why it is unhealthy
    loaded: tuple[int, int]  # bytes of the model so far, and in all

    def submit(self, job: GenerationRequest, emit: Emit) -> Cancels:
        """Raises QueueFull, Unavailable; DoesNotFit, InputError, UsageError for a job that can't run."""

    def probe(self, timeout: float) -> Health: ...

    def stats(self) -> Stats: ...

    def close(self, grace: float) -> bool: ...
