"""An engine that says what it is told to: exact pieces, delays, prefill steps and errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsv4_mlx.errors import Progress
from dsv4_mlx.terminal.chat_engine import (
    AnswerStopped,
    ChatMessage,
    ChatRequest,
    EngineInfo,
    Kind,
    StreamCallbacks,
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


@dataclass
class Scripted:
    """A Speaker. `answer(question, asked)` chooses the reply; a token is four characters of a prompt."""

    answer: Callable[[str, ChatRequest], Reply]
    context: int = 8192
    load_steps: int = 1
    load_delay: float = 0.0
    load_error: BaseException | None = None
    asked: list[ChatRequest] = field(default_factory=list)

    def open(self, progress: Progress) -> EngineInfo:
        for step in range(self.load_steps):
            time.sleep(self.load_delay)
            progress((step + 1) * 10**9, self.load_steps * 10**9)
        if self.load_error is not None:
            raise self.load_error
        return EngineInfo("scripted", self.context)

    def count(self, messages: Sequence[ChatMessage], think: Think) -> int:
        return sum(len(message.text) for message in messages) // 4 + 4 * len(messages)

    def memory(self) -> int:
        return 12_300_000_000

    def experts(self) -> str:
        return "experts 93% in memory"

    def reply(self, asked: ChatRequest, listener: StreamCallbacks) -> Literal["stop", "length"]:
        self.asked.append(asked)
        reply = self.answer(asked.messages[-1].text, asked)
        total = self.count(asked.messages, asked.think)
        for step in range(reply.prefill):
            time.sleep(reply.prefill_delay)
            listener.prefill((step + 1) * total // reply.prefill, total, 0)
        due = time.monotonic()
        for kind, text in reply.steps:
            due += reply.delay
            time.sleep(max(0.0, due - time.monotonic()))
            listener.piece(kind, text)
            listener.token()
        if reply.error is not None:
            raise reply.error
        return reply.ending

    def keep(self, key: str, messages: Sequence[ChatMessage], think: Think) -> None:
        """Nothing to keep."""

    def recall(self, key: str) -> int:
        return 0


__all__ = ["Reply", "Scripted", "Step", "AnswerStopped", "words"]
