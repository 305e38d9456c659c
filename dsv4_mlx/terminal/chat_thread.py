"""The thread that owns the engine. MLX's streams belong to a thread, so all of its work happens here.

The chat puts orders in, and takes `Event`s out of a queue whenever it likes; nothing wakes it per token.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal

from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.terminal.chat_engine import AnswerStopped, ChatEngine, ChatRequest, EngineInfo, Kind

MEMORY_EVERY = 1.0  # seconds between looks at the memory in use
Ending = Literal["stop", "length", "interrupted", "error"]


@dataclass(frozen=True)
class Loading:
    done: int
    total: int


@dataclass(frozen=True)
class EngineOpened:
    facts: EngineInfo


@dataclass(frozen=True)
class Failed:
    """The model could not be opened. `error` is None where the person stopped it."""

    error: BaseException | None


@dataclass(frozen=True)
class Prefilling:
    done: int
    total: int
    reused: int
    at: float


@dataclass(frozen=True)
class AnswerPiece:
    kind: Kind
    text: str
    at: float


@dataclass(frozen=True)
class Counted:
    """`tokens` of the answer so far."""

    tokens: int
    at: float
    memory: int
    experts: str = ""


@dataclass(frozen=True)
class Ended:
    how: Ending
    at: float
    error: BaseException | None = None
    detail: str = ""


@dataclass(frozen=True)
class Recalled:
    tokens: int


Event = Loading | EngineOpened | Failed | Prefilling | AnswerPiece | Counted | Ended | Recalled


@dataclass
class _Hearing:
    """Turns what an engine says into events, and the stop flag into Stopped."""

    worker: ChatEngineThread
    tokens: int = 0
    memory: int = 0
    experts: str = ""
    looked: float = field(default=0.0)

    def prefill(self, done: int, total: int, reused: int) -> None:
        self.worker.events.put(Prefilling(done, total, reused, time.monotonic()))
        self.worker.check()

    def between(self) -> None:
        self.worker.check()

    def piece(self, kind: Kind, text: str) -> None:
        self.worker.events.put(AnswerPiece(kind, text, time.monotonic()))

    def token(self) -> None:
        self.tokens += 1
        now = time.monotonic()
        if now - self.looked > MEMORY_EVERY:
            self.looked, self.memory = now, self.worker.speaker.memory()
            self.experts = self.worker.speaker.experts()
        self.worker.events.put(Counted(self.tokens, now, self.memory, self.experts))
        self.worker.check()


class ChatEngineThread:
    """Owns a Speaker. `start` opens it; then one order after another."""

    def __init__(self, speaker: ChatEngine) -> None:
        self.speaker = speaker
        self.events: SimpleQueue[Event] = SimpleQueue()
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self, asked: ChatRequest) -> None:
        """Order an answer. Its events end with Ended."""
        self._stop.clear()
        self._orders.put(lambda: self._reply(asked))

    def order(self, work: Callable[[], None]) -> None:
        """Run something else in the engine's thread, after what was ordered before."""
        self._orders.put(work)

    def stop(self) -> None:
        """Stop loading or answering at the next token or prefill chunk."""
        self._stop.set()

    def check(self) -> None:
        """Raise Stopped if the person asked to stop."""
        if self._stop.is_set():
            raise AnswerStopped

    def close(self, seconds: float) -> bool:
        """Stop, and wait for the thread; whether it ended in time."""
        self.stop()
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if not self._open():
            return
        while (order := self._orders.get()) is not None:
            order()

    def _open(self) -> bool:
        def progress(done: int, total: int) -> None:
            self.events.put(Loading(done, total))
            self.check()

        try:
            facts = self.speaker.open(progress)
            self.check()
        except AnswerStopped:
            self.events.put(Failed(None))
            return False
        except BaseException as error:  # handed to the main thread, which decides what to say
            self.events.put(Failed(error))
            return False
        self.events.put(EngineOpened(facts))
        return True

    def _reply(self, asked: ChatRequest) -> None:
        how: Ending = "error"
        error: BaseException | None = None
        try:
            self.check()
            how = self.speaker.reply(asked, _Hearing(self))
        except AnswerStopped:
            how = "interrupted"
        except BaseException as raised:  # likewise: the conversation must outlive any failure here
            error = raised
        self.events.put(Ended(how, time.monotonic(), error, "" if error is None else _detail(error)))


def _detail(error: BaseException) -> str:
    return "" if isinstance(error, Dsv4Error) else "".join(traceback.format_exception(error))
