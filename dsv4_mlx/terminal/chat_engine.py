"""What the chat asks of an engine. The real one is in cli/chat_engine.py; tests bring a scripted one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Think = Literal["off", "on", "max"]
Role = Literal["system", "user", "assistant"]
Kind = Literal["thinking", "answer", "tool"]
Progress = Callable[[int, int], None]


class AnswerStopped(Exception):
    """The person asked to stop. Raised by the callbacks below, in the thread that called them."""


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


class StreamCallbacks(Protocol):
    """Hears an answer as it is made. Every call may raise Stopped, which a speaker lets pass."""

    def prefill(self, done: int, total: int, reused: int) -> None:
        """`done` of `total` tokens of the prompt are computed; `reused` more were known already."""

    def between(self) -> None:
        """Between two layers of a prefill."""

    def piece(self, kind: Kind, text: str) -> None:
        """The model said something."""

    def token(self) -> None:
        """One token is done; it may have made no piece yet."""


class ChatEngine(Protocol):
    """An engine with one conversation in its memory. All calls but `count` come from one thread."""

    def open(self, progress: Progress) -> EngineInfo:
        """Load the model; `progress(done, total)` counts bytes and may raise Stopped. Raises Dsv4Error."""

    def count(self, messages: Sequence[ChatMessage], think: Think) -> int:
        """Tokens of a prompt. Any thread, once the model is open."""

    def memory(self) -> int:
        """Bytes the model and its state take now."""

    def experts(self) -> str:
        """How paged experts did since the last call, for the status line; "" where all are in memory."""

    def reply(self, asked: ChatRequest, listener: StreamCallbacks) -> Literal["stop", "length"]:
        """Answer, and say whether the model ended it or a limit did. Raises Dsv4Error."""

    def keep(self, key: str, messages: Sequence[ChatMessage], think: Think) -> None:
        """The conversation `key` is left: what was computed for it may be kept on disk. Raises nothing."""

    def recall(self, key: str) -> int:
        """The conversation `key` is taken up: how many tokens need no prefill. Raises nothing."""
