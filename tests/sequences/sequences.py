"""The table of hard sequences: what is sampled, and what every door must make of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from server.sse import Cutter

from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.tokenizer.template import Prompts

Door = Literal["chat", "generate", "server", "library"]


@dataclass(frozen=True)
class Sequence:
    """One line of sequences.jsonl.

    say: segments of text, each in tokens of its own: markers in a string are markers, in `plain` they are
    text; `bytes` are tokens of a byte each. The end of sentence follows. cut: tokens left out at the end.
    most, room: limits by --max-tokens and by the context; stop: stop strings; tools: whether f is offered.
    """

    name: str
    say: tuple[Any, ...]
    thinking: str
    answer: str
    reason: str
    think: bool = True
    cut: int = 0
    most: int | None = None
    room: int | None = None
    stop: tuple[str, ...] = ()
    tools: bool = False
    calls: tuple[str, ...] = ()  # a name and arguments, as far as they came

    def __str__(self) -> str:
        return self.name

    def goes_through(self, door: Door) -> bool:
        """Whether the door has the options that the sequence needs."""
        return not (self.tools and door not in ("server", "library")) and not (self.stop and door == "chat")

    def ids(self) -> list[int]:
        prompts, cutter = _tokenizer()
        ids: list[int] = []
        for part in self.say:
            if isinstance(part, str):
                ids += prompts.tokenizer.encode(part)
            elif "plain" in part:
                ids += prompts.spelling.encode(part["plain"])
            else:
                ids += [cutter.byte(value) for value in part["bytes"]]
        return ids[: len(ids) - self.cut]

    def expected(self) -> tuple[str, str, str]:
        return self.thinking, self.answer, self.reason


@cache
def _tokenizer() -> tuple[Prompts, Cutter]:
    prompts = Prompts(SHIPPED, "april")
    return prompts, Cutter(prompts.spelling)


def prompt_length(text: str, *, think: bool) -> int:
    prompts, _ = _tokenizer()
    return len(prompts.encode(prompts.ask(text, "on" if think else "off")))


def read_table() -> list[Sequence]:
    lines = Path(__file__).with_name("sequences.jsonl").read_text("utf-8").splitlines()
    return [_sequence(json.loads(line)) for line in lines]


def _sequence(row: dict[str, Any]) -> Sequence:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Sequence(**values)


TABLE = read_table()
