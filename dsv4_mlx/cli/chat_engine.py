"""The engine thread as the terminal chat wants it: questions in, events for the screen out."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from dsv4_mlx.engine import session_file
from dsv4_mlx.engine.decode import Event as EngineEvent
from dsv4_mlx.engine.decode import Finished, PrefillProgress, Token
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.machine.limits import memory_in_use
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import Backend
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.session_pool import SessionPool
from dsv4_mlx.terminal.chat_engine import (
    AnswerPiece,
    ChatMessage,
    ChatRequest,
    Counted,
    Ended,
    Ending,
    EngineInfo,
    EngineOpened,
    Event,
    Failed,
    Loading,
    Prefilling,
    Recalled,
    Role,
    Think,
)
from dsv4_mlx.tokenizer.output_parser import Piece, TextParser

MEMORY_EVERY = 1.0  # seconds between looks at the memory in use
READING = 0.5e9  # bytes a second that a disk reads at least, and that are checked
LONG = 256  # tokens of a prefill that say how fast prefill is
KEPT = 8  # saved states


class ChatBackend(Backend, Protocol):
    """A backend that can also say what a chat shows and saves."""

    @property
    def notice(self) -> str:
        """How it was opened, where there is something to say. Once open."""

    def recently(self) -> str:
        """How paged experts did since the last call, for people; "" where all are in memory."""

    def identity(self) -> str:
        """What a saved state must have been computed with; "" where states can't be saved. Once open."""


class ThreadChatEngine:
    """A ChatEngine: one EngineThread that answers one question at a time.

    `states`: the folder for saved states; None keeps none.
    """

    def __init__(
        self,
        backend: ChatBackend,
        name: str,
        sampling: SamplingOptions,
        max_tokens: int | None,
        states: Path | None = None,
        *,
        think_budget: int | None = None,
        recipe: str = "",
    ) -> None:
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.rate = 0.0  # tokens a second that the last long prefill computed
        self.backend, self._name, self._recipe = backend, name, recipe
        self._sampling, self._states = sampling, states
        self._max_tokens, self._think_budget = max_tokens, think_budget
        self._thread = EngineThread(backend, SchedulerOptions(active=1, sessions=1), watch=self._changed)
        self._answer: _Answer | None = None
        self._opened = self._stopped = False

    def start(self) -> None:
        self._thread.start()

    def ask(self, asked: ChatRequest) -> None:
        try:
            prompts = self.backend.prompts
            conversation = prompts.talk(_pairs(asked.messages), asked.think)
            sampling = replace(self._sampling, seed=asked.seed).without(prompts.spelling.dsml)
            prompt = tuple(prompts.encode(conversation))
            request = GenerationRequest(prompt, sampling, self._max_tokens, think_budget=self._think_budget)
            self._answer = _Answer(self, TextParser(conversation, prompts.spelling))
            self._answer.run(self._thread, request)
        except Exception as error:  # the conversation must outlive any failure here
            self.events.put(_failed(error))

    def stop(self) -> None:
        self._stopped = True
        if not self._opened:
            self._thread.close(0, wait=0)
        elif self._answer is not None:
            self._answer.cancel()

    def close(self, seconds: float) -> bool:
        self.stop()
        return self._thread.close(0, wait=seconds)

    def count(self, messages: Sequence[ChatMessage], think: Think) -> int:
        prompts = self.backend.prompts
        return len(prompts.encode(prompts.talk(_pairs(messages), think)))

    def keep(self, key: str, messages: Sequence[ChatMessage], think: Think) -> None:
        """Save the state where reading it back is much cheaper than prefilling again."""
        following = [*_pairs(messages), ("user", "?")]

        def work(pool: SessionPool) -> None:
            prompts, who = self.backend.prompts, self.backend.identity()
            prompt = prompts.encode(prompts.talk(following, think))
            found = [(session_file.point_to_save(one, prompt), one) for one in _sessions(pool)]
            length, session = max(found, key=lambda one: one[0], default=(0, None))
            if self._states is None or session is None or not length or not self.rate or not who:
                return
            reading = session_file.saved_bytes(session, length) / READING
            if length / self.rate < 2 * reading + 1:
                return
            self._states.mkdir(parents=True, exist_ok=True, mode=0o700)
            session_file.save(session, length, self._states / f"{key}.safetensors", who)
            session_file.prune(self._states, KEPT)

        def quietly(pool: SessionPool) -> None:
            with suppress(OSError, RuntimeError, Dsv4Error):
                work(pool)

        self._thread.call(quietly)

    def recall(self, key: str) -> None:
        def work(pool: SessionPool) -> None:
            session, who = self.backend.session(), self.backend.identity()
            tokens = 0
            if self._states is not None and who and isinstance(session, Session):
                tokens = session_file.load(session, self._states / f"{key}.safetensors", who)
            known = max((one.cached_prefix([*session.tokens, 0]) for one in pool.idle), default=0)
            if tokens > known:
                pool.adopt(session)
            self.events.put(Recalled(tokens if tokens > known else 0))

        self._thread.call(work)

    def _changed(self) -> None:
        """In the engine's thread: another state, or more of the model is loaded."""
        thread = self._thread
        if thread.state == "loading":
            self.events.put(Loading(*thread.loaded))
        elif not self._opened and thread.state in ("ready", "unhealthy"):
            if self._stopped or thread.state == "unhealthy":
                self.events.put(Failed(None if self._stopped else thread.error))
                return
            prompts = self.backend.prompts
            prompts.spelling  # noqa: B018  read now, so that the first answer need not wait for it
            self._opened = True
            self.events.put(
                EngineOpened(EngineInfo(self._name, thread.context, self.backend.notice, self._recipe))
            )


class _Answer:
    """Turns the engine's events of one answer into the chat's."""

    def __init__(self, engine: ThreadChatEngine, parser: TextParser) -> None:
        self._engine, self._parser, self._events = engine, parser, engine.events
        self._lock = threading.Lock()  # held until the ticket is there
        self._began = time.monotonic()
        self._tokens = self._memory = 0
        self._experts, self._looked = "", 0.0

    def run(self, thread: EngineThread, request: GenerationRequest) -> None:
        with self._lock:
            self._ticket = thread.submit(request, self.emit)

    def cancel(self) -> None:
        with self._lock:
            self._ticket.cancel()

    def emit(self, event: EngineEvent) -> None:
        """In the engine's thread."""
        now = time.monotonic()
        if isinstance(event, PrefillProgress) and event.done:
            if event.done >= LONG:
                self._engine.rate = event.done / (now - self._began)
            self._events.put(Prefilling(event.done, event.total, event.cached, now))
        elif isinstance(event, Token) and not self._parser.over:
            self._say(self._parser.push(event.id))
            self._count(now)
            if self._parser.over:
                self.cancel()
        elif isinstance(event, Finished):
            self._finish(event, now)

    def _count(self, now: float) -> None:
        self._tokens += 1
        if now - self._looked > MEMORY_EVERY:
            self._looked, self._memory = now, memory_in_use()
            self._experts = self._engine.backend.recently()
        self._events.put(Counted(self._tokens, now, self._memory, self._experts))

    def _finish(self, event: Finished, now: float) -> None:
        if event.reason == "error" and event.error is not None:
            self._events.put(_failed(event.error))
            return
        how: Ending = "interrupted"
        if event.reason != "cancelled" or self._parser.over:
            self._say(self._parser.finish(length=event.reason == "length"))
            how = self._parser.reason
        self._events.put(Ended(how, now))

    def _say(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._events.put(AnswerPiece(piece.kind, piece.text, time.monotonic()))


def _failed(error: BaseException) -> Ended:
    detail = "" if isinstance(error, Dsv4Error) else "".join(traceback.format_exception(error))
    return Ended("error", time.monotonic(), error, detail)


def _pairs(messages: Sequence[ChatMessage]) -> list[tuple[Role, str]]:
    return [(message.role, message.text) for message in messages]


def _sessions(pool: SessionPool) -> list[Session]:
    return [session for session in pool.idle if isinstance(session, Session)]
