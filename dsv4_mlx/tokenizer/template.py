"""Conversations -> the exact prompt of DeepSeek V4, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from deepseek_recipe import (
    AssistantMessage,
    Conversation,
    DeepseekV4Encoding,
    Message,
    SpecialToken,
    SystemMessage,
    Tokenizer,
    UserMessage,
)

from dsv4_mlx.errors import InputError
from dsv4_mlx.tokenizer.markers import Spelling

Think = Literal["off", "on", "max"]
Role = Literal["system", "user", "assistant"]
Level = Literal["low", "high", "max"]  # how much to think, as clients say it
THINK: tuple[Think, ...] = ("off", "on", "max")

# The library's words are those of the 0731 checkpoint: `low` adds no text, `high` adds what April was
# trained to read as "max", `max` adds a text April has never seen, and no word at all means high.
LEVELS: dict[str, dict[Level, Level]] = {
    "april": {"low": "low", "high": "low", "max": "high"},
    "0731": {"low": "low", "high": "high", "max": "max"},
}

_MESSAGES: dict[Role, Callable[[str], Message]] = {
    "system": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
}


@dataclass(frozen=True)
class Markers:
    """Token ids that structure a prompt."""

    end: int  # end of sentence: stops generation
    assistant: int
    think: int
    end_think: int


class Prompts:
    """Renders conversations for one checkpoint. Text that spells a marker stays text."""

    def __init__(self, folder: Path, checkpoint: str) -> None:
        """Read `folder/tokenizer.json`. Raises InputError."""
        self._folder, path = folder, folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                "there is no tokenizer.json", where=folder, next="copy it from the official checkpoint"
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises its own kinds for every defect of the file
            raise InputError(f"tokenizer.json can't be read: {error}", where=path) from None
        self.levels = LEVELS[checkpoint]
        self.effort: dict[Think, Level | None] = {
            "off": None,
            "on": self.levels["high"],
            "max": self.levels["max"],
        }
        self._encoding = DeepseekV4Encoding().with_tokenizer(self.tokenizer)
        self.markers = Markers(
            end=self._marker(SpecialToken.Eos, path),
            assistant=self._marker(SpecialToken.Assistant, path),
            think=self._marker(SpecialToken.ThinkingStart, path),
            end_think=self._marker(SpecialToken.ThinkingEnd, path),
        )

    @cached_property
    def spelling(self) -> Spelling:
        """The same tokenizer as what reads answers needs it."""
        return Spelling(self._folder)

    def conversation(self, messages: list[Message], think: Think, schema: Any = None) -> Conversation:
        """Messages and a mode -> the library's conversation, with the effort word this checkpoint knows.

        schema: a JSON Schema that the prompt asks the answer to follow; None: it asks for nothing.
        """
        effort = self.effort[think]
        return Conversation(
            messages, thinking_mode=think != "off", reasoning_effort=effort, response_schema=schema
        )

    def talk(self, said: Iterable[tuple[Role, str]], think: Think) -> Conversation:
        """A conversation of (role, text) pairs, without earlier answers' thinking. Raises InputError."""
        return self.conversation([_message(role, text) for role, text in said], think)

    def ask(self, text: str, think: Think, schema: Any = None) -> Conversation:
        """A conversation of one user message. Raises InputError."""
        return self.conversation([_message("user", text)], think, schema)

    def encode(self, conversation: Conversation) -> list[int]:
        """The prompt's token ids, ending where the assistant's turn begins."""
        try:
            return self._encoding.encode(conversation)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the conversation can't be encoded: {error}") from None

    def _marker(self, token: SpecialToken, path: Path) -> int:
        text = token.default_str()
        ids = self.tokenizer.encode(text)
        if len(ids) != 1:
            raise InputError(
                f"tokenizer.json has no token for {text!r}",
                where=path,
                next="use the tokenizer.json of the official checkpoint",
            )
        return ids[0]


def _message(role: Role, text: str) -> Message:
    try:
        return _MESSAGES[role](text)
    except UnicodeEncodeError:  # bytes of a command line or file that were no UTF-8
        raise InputError("the prompt is not text: it holds bytes that are not UTF-8") from None
