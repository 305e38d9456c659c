"""Exact turns: what the model sampled is remembered, and put back where its rendering would stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from deepseek_recipe import Conversation


@dataclass(frozen=True)
class Call:
    """A tool call as the client got it; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Said:
    """A finished turn as the client got it."""

    reasoning: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """A prompt; `spliced` turns are as sampled, of which `recovered` came without their reasoning."""

    ids: tuple[int, ...]
    spliced: int
    recovered: int


class Turns(Protocol):
    """Safe for several threads."""

    def handle(self) -> str:
        """A new handle for the turn that begins: what goes out as `signature` or `encrypted_content`."""

    def remember(self, prompt: Sequence[int], sampled: Sequence[int], said: Said, handle: str) -> None:
        """Keep a turn that ended by itself. `sampled`: the ids of its Token events."""

    def render(self, conversation: Conversation, handles: Mapping[int, str] | None = None) -> Rendered:
        """The prompt ids. `handles`: by index of message, those that came back. Raises InputError."""
