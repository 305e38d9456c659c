"""What was said, and its form in a file."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dsv4_mlx.terminal.chat_engine import ChatMessage, Think

VERSION = 1


@dataclass
class Message:
    """One message. What follows `text` belongs to answers."""

    role: Literal["user", "assistant"]
    text: str
    thinking: str = ""
    tools: str = ""
    thinking_seconds: float = 0.0
    thinking_tokens: int = 0
    tokens: int = 0
    ending: str = "stop"


@dataclass
class Conversation:
    """A conversation; `key` names its file."""

    key: str
    created: float
    updated: float
    model: str = ""
    title: str = ""
    system: str = ""
    think: Think = "on"
    messages: list[Message] = field(default_factory=list)

    @staticmethod
    def new(system: str = "", think: Think = "on") -> Conversation:
        now = time.time()
        key = time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + secrets.token_hex(2)
        return Conversation(key, now, now, system=system, think=think)

    @property
    def name(self) -> str:
        """The title given to it, or the beginning of its first question."""
        if self.title:
            return self.title
        return shortened(self.messages[0].text) if self.messages else "(empty)"

    def spoken(self) -> tuple[ChatMessage, ...]:
        """The messages as the model gets them: earlier thinking is not repeated to it."""
        start = (ChatMessage("system", self.system),) if self.system else ()
        return (*start, *(ChatMessage(message.role, message.text) for message in self.messages))

    def last(self, role: Literal["user", "assistant"]) -> Message | None:
        return next((message for message in reversed(self.messages) if message.role == role), None)

    def take_back(self) -> str | None:
        """Remove the last question and what follows it; the question, or None if there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                text = self.messages[i].text
                del self.messages[i:]
                return text
        return None

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Conversation:
        """Raises KeyError, TypeError or ValueError for anything that is not a conversation."""
        found = Conversation(
            key=_text(raw["key"]), created=float(raw["created"]), updated=float(raw["updated"]),
            model=_text(raw["model"]), title=_text(raw["title"]), system=_text(raw["system"]),
            think=_think(raw["think"]),
        )  # fmt: skip
        for value in raw["messages"]:
            if value["role"] not in ("user", "assistant"):
                raise ValueError(f"a message has the role {value['role']!r}")
            message = Message(**value)
            for text in (message.text, message.thinking, message.tools, message.ending):
                _text(text)
            for number in (message.thinking_seconds, message.thinking_tokens, message.tokens):
                float(number)
            found.messages.append(message)
        return found


def shortened(text: str, width: int = 60) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: width * 4].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value


def _think(value: object) -> Think:
    for mode in ("off", "on", "max"):
        if value == mode:
            return mode
    raise ValueError(f"think is {value!r}")
