"""An engine that says what it is told to: exact pieces, delays, prefill steps and errors."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal

from dsv4_mlx.errors import Dsv4Error
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
    Kind,
    Loading,
    Prefilling,
    Recalled,
    Think,
)

Step = tuple[Kind, str]


def words(kind: Kind, text: str) -> list[Step]:
    """A text as a model would say it: a word at a time."""
    pieces = text.replace(" ", "\0 ").replace("\n", "\0\n").split("\0")
    return [(kind, piece) for piece in pieces if piece]


@dataclass
class Reply:
    """One answer. `delay` is the time of a token; `prefill` the steps of reading the prompt."""

    steps: list[Step]
    delay: float = 0.0
    prefill: int = 1
    prefill_delay: float = 0.0
    ending: Literal["stop", "length"] = "stop"
    error: BaseException | None = None


class Stopped(Exception):
    """The person asked to stop."""


@dataclass
class Scripted:
    """A ChatEngine. `answer(question, asked)` chooses the reply; a token is four characters of a prompt."""

    answer: Callable[[str, ChatRequest], Reply]
    context: int = 8192
    load_steps: int = 1
    load_delay: float = 0.0
    load_error: BaseException | None = None
    asked: list[ChatRequest] = field(default_factory=list)
    events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    _orders: SimpleQueue[ChatRequest | None] = field(default_factory=SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, asked: ChatRequest) -> None:
        self._stop.clear()
        self._orders.put(asked)

    def stop(self) -> None:
        self._stop.set()

    def close(self, seconds: float) -> bool:
        self.stop()
        self._orders.put(None)
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def count(self, messages: Sequence[ChatMessage], think: Think) -> int:
        return sum(len(message.text) for message in messages) // 4 + 4 * len(messages)

    def keep(self, key: str, messages: Sequence[ChatMessage], think: Think) -> None:
        """Nothing to keep."""

    def recall(self, key: str) -> None:
        self.events.put(Recalled(0))

    def _run(self) -> None:
        try:
            for step in range(self.load_steps):
                time.sleep(self.load_delay)
                self._put(Loading((step + 1) * 10**9, self.load_steps * 10**9))
            if self.load_error is not None:
                raise self.load_error
        except BaseException as raised:
            self.events.put(Failed(None if isinstance(raised, Stopped) else raised))
            return
        self.events.put(EngineOpened(EngineInfo("scripted", self.context)))
        while (asked := self._orders.get()) is not None:
            how: Ending = "error"
            error: BaseException | None = None
            try:
                how = self._reply(asked)
            except Stopped:
                how = "interrupted"
            except BaseException as raised:
                error = raised
            plain = error is None or isinstance(error, Dsv4Error)
            detail = "" if plain else "".join(traceback.format_exception(error))
            self.events.put(Ended(how, time.monotonic(), error, detail))

    def _reply(self, asked: ChatRequest) -> Literal["stop", "length"]:
        self.asked.append(asked)
        reply = self.answer(asked.messages[-1].text, asked)
        total = self.count(asked.messages, asked.think)
        for step in range(reply.prefill):
            time.sleep(reply.prefill_delay)
            self._put(Prefilling((step + 1) * total // reply.prefill, total, 0, time.monotonic()))
        due = time.monotonic()
        for tokens, (kind, text) in enumerate(reply.steps, 1):
            due += reply.delay
            time.sleep(max(0.0, due - time.monotonic()))
            self.events.put(AnswerPiece(kind, text, time.monotonic()))
            self._put(Counted(tokens, time.monotonic(), 12_300_000_000, "experts 93% in memory"))
        if reply.error is not None:
            raise reply.error
        return reply.ending

    def _put(self, event: Event) -> None:
        self.events.put(event)
        if self._stop.is_set():
            raise Stopped
