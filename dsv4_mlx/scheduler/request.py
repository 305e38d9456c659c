"""What is asked of the engine thread, and what it says back. No HTTP, no text: token ids in, token ids out.

    EngineThread.submit(job, emit) -> Ticket
    emit(PrefillProgress)*  emit(Token)*  emit(Finished)       in the engine's thread, in this order

Every job ends with exactly one Finished, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.decode import Event
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import Dsv4Error


@dataclass(frozen=True)
class GenerationRequest:
    """One model turn.

    `prompt`: token ids, ending where the turn begins. `max_tokens` None: what the context leaves.
    `constraint` belongs to this job alone. `logprobs`: that many alternatives beside each token's own, 0 to
    20; None for no log probabilities. `think_budget`: after so many tokens of thinking its end is forced.
    `sampling.stop_strings` is not looked at: text is the caller's, who cancels the ticket.
    `hint` groups jobs of one client for fairness; it is never a path or a key to anything.
    """

    prompt: tuple[int, ...]
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    think_budget: int | None = None
    hint: str = ""


Emit = Callable[[Event], None]  # must not block and must not raise


class QueueFull(Dsv4Error):
    """Too many jobs wait already. `retry_after` in seconds."""

    exit_code = 3

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests wait already", next="try again later")
        self.retry_after = retry_after


class Unavailable(Dsv4Error):
    """The engine does not take jobs: it loads, it failed, or it is closing."""

    exit_code = 3
