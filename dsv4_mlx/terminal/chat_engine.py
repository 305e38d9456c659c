"""What the chat asks of an engine, and the events that tell what came of it.

The real engine is in cli/chat_engine.py; tests bring a scripted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal, Protocol

Think = Literal["off", "on", "max"]
Role = Literal["system", "user", "assistant"]
Kind = Literal["thinking", "answer", "tool"]
Ending = Literal["stop", "length", "interrupted", "error"]


@dataclass(frozen=True)
class ChatMessage:
    """One message as the model gets it."""

    role: Role
    text: str


@dataclass(frozen=True)
class ChatRequest:
    """A question: the whole conversation up to it, and how to answer."""

    messages: tuple[ChatMessage, ...]
    think: Think
    seed: int


@dataclass(frozen=True)
class EngineInfo:
    """What is known once the model is open."""

    name: str
    context: int
    notice: str = ""  # how it was opened, where there is something to say
    recipe: str = ""  # how it is stored

    @property
    def greeting(self) -> str:
        recipe = f", {self.recipe}" if self.recipe else ""
        return f"{self.name}{recipe}, context {self.context:,}"


@dataclass(frozen=True)
class Loading:
    """Bytes of the model that are loaded, and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class EngineOpened:
    info: EngineInfo


@dataclass(frozen=True)
class Failed:
    """The model could not be opened. `error` is None where the person stopped it."""

    error: BaseException | None


@dataclass(frozen=True)
class Prefilling:
    """`done` of `total` tokens of the prompt are computed; `reused` more were known already."""

    done: int
    total: int
    reused: int
    at: float  # time.monotonic(), here and below


@dataclass(frozen=True)
class AnswerPiece:
    """The model said something."""

    kind: Kind
    text: str
    at: float


@dataclass(frozen=True)
class Counted:
    """`tokens` of the answer so far, bytes of memory in use, and how paged experts did."""

    tokens: int
    at: float
    memory: int
    experts: str = ""


@dataclass(frozen=True)
class Ended:
    """The answer is over. `detail`: the traceback of an error that nobody expects."""

    how: Ending
    at: float
    error: BaseException | None = None
    detail: str = ""


@dataclass(frozen=True)
class Recalled:
    """So many tokens of a conversation were restored from disk."""

    tokens: int


Event = Loading | EngineOpened | Failed | Prefilling | AnswerPiece | Counted | Ended | Recalled


class ChatEngine(Protocol):
    """A model with a thread of its own. The chat orders, and takes events whenever it likes: nothing wakes
    it per token. No call but `close` waits for the model."""

    @property
    def events(self) -> SimpleQueue[Event]:
        """What has happened, in order."""

    def start(self) -> None:
        """Load the model: Loading, Loading ..., then EngineOpened or Failed."""

    def ask(self, asked: ChatRequest) -> None:
        """Order an answer: Prefilling, then AnswerPiece and Counted, at last Ended, whatever happens."""

    def stop(self) -> None:
        """Stop loading, or answering at the next token or prefill chunk."""

    def close(self, seconds: float) -> bool:
        """Stop, do what was ordered before, and wait for the thread; whether it ended in time."""

    def count(self, messages: Sequence[ChatMessage], think: Think) -> int:
        """Tokens of a prompt. Raises Dsv4Error."""

    def keep(self, key: str, messages: Sequence[ChatMessage], think: Think) -> None:
        """The conversation `key` is left: what was computed for it may be kept on disk."""

    def recall(self, key: str) -> None:
        """The conversation `key` is taken up: Recalled says how much of it needs no prefill."""
