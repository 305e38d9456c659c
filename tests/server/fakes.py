"""A worker that says what it is told to, for tests of everything in front of the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepseek_recipe import Conversation

from dsv4_mlx.engine.decode import Finished, PrefillProgress, Reason, Token
from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.scheduler.engine_thread import EngineThread, Health, State, Stats, Ticket
from dsv4_mlx.scheduler.request import Emit, GenerationRequest
from dsv4_mlx.scheduler.turn_cache import Completion, Rendered, TurnCache
from dsv4_mlx.tokenizer.template import Prompts

CHECKPOINT = SHIPPED
VOCABULARY = 1792


@dataclass
class Script:
    """One turn: `text` with markers, said token by token."""

    text: str
    finish: Reason = "stop"
    error: BaseException | None = None
    queued: float = 0.0  # seconds before anything is said
    prefill: float = 0.0  # seconds
    pause: float = 0.0  # seconds between tokens
    cached: int = 0


class FakeTicket(Ticket):
    def __init__(self) -> None:
        self.cancelled = threading.Event()
        super().__init__(self.cancelled.set)


class FakeWorker(EngineThread):
    """Each job takes the next script, then again from the first; its thread ends with the job."""

    def __init__(self, prompts: Prompts, scripts: Iterable[Script], context: int = 4096) -> None:
        self.prompts, self.scripts, self._context = prompts, list(scripts), context
        self.state: State = "ready"
        self.error: BaseException | None = None
        self.loaded = (1, 1)
        self.jobs: list[GenerationRequest] = []
        self.tickets: list[FakeTicket] = []
        self.refuse: BaseException | None = None

    @property
    def context(self) -> int:
        return self._context

    def submit(self, job: GenerationRequest, emit: Emit) -> FakeTicket:
        if self.refuse is not None:
            raise self.refuse
        script = self.scripts[len(self.jobs) % len(self.scripts)]
        ticket = FakeTicket()
        self.jobs.append(job)
        self.tickets.append(ticket)
        threading.Thread(target=self._run, args=(job, script, emit, ticket), daemon=True).start()
        return ticket

    def _run(self, job: GenerationRequest, script: Script, emit: Emit, ticket: FakeTicket) -> None:
        if ticket.cancelled.wait(script.queued):
            emit(Finished("cancelled"))
            return
        cached = min(script.cached, len(job.prompt) - 1)
        new = len(job.prompt) - cached
        emit(PrefillProgress(0, new, cached))
        if ticket.cancelled.wait(script.prefill):
            emit(Finished("cancelled"))
            return
        scored = job.prompt_logprobs is not None
        emit(
            PrefillProgress(new, new, cached, tuple((-1.0 - i, ()) for i in range(len(job.prompt) * scored)))
        )
        ids = self.prompts.tokenizer.encode(script.text)
        top = ((5, -1.5), (self.prompts.markers.end_think, -2.5))
        for count, id in enumerate(ids):
            if ticket.cancelled.is_set():
                emit(Finished("cancelled"))
                return
            if job.max_tokens is not None and count == job.max_tokens:
                emit(Finished("length"))
                return
            if script.pause:
                time.sleep(script.pause)
            asked = job.logprobs
            emit(Token(id) if asked is None else Token(id, -0.5, ((id, -0.5), *top)[:asked]))
        emit(Finished(script.finish, script.error))

    def probe(self, timeout: float) -> Health:
        return Health(self.state, True, 0.0)

    def stats(self) -> Stats:
        return Stats(0, 0, 1, 10, 100, len(self.jobs), 0, {}, 100, 40, 7, 0, 0, 0, {}, {})

    def close(self, grace: float, wait: float = 30.0) -> bool:
        self.state = "closed"
        for ticket in self.tickets:
            ticket.cancel()
        return True


class PlainTurns(TurnCache):
    """Renders without remembering; keeps what it was told to remember."""

    def __init__(self, prompts: Prompts) -> None:
        super().__init__(prompts)
        self.prompts = prompts
        self.made = 0
        self.remembered: list[tuple[tuple[int, ...], tuple[int, ...], Completion, str]] = []
        self.handles: list[Mapping[int, str]] = []

    def handle(self) -> str:
        self.made += 1
        return f"{self.made:032x}"

    def remember(
        self, prompt: Sequence[int], sampled: Sequence[int], said: Completion, handle: str = ""
    ) -> None:
        self.remembered.append((tuple(prompt), tuple(sampled), said, handle))

    def render(
        self, conversation: Conversation, handles: Mapping[int, str] | None = None, most: int | None = None
    ) -> Rendered:
        self.handles.append(handles or {})
        return Rendered(tuple(self.prompts.encode(conversation, most)), 0, 0)
