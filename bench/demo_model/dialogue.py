"""Conversations as data: what is said, in the official rendering, and which tokens are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepseek_recipe import Conversation, Message, ToolDefinition

from dsv4_mlx.tokenizer.template import Prompts, Think


@dataclass(frozen=True)
class Dialogue:
    """A whole conversation, assistant turns included. `copied`: names and numbers that a turn must copy;
    `stressed`: words that a turn must choose, among much that follows by itself."""

    messages: list[Message]
    think: Think = "off"
    tools: list[ToolDefinition] | None = None
    json: bool = False
    copied: tuple[str, ...] = ()
    stressed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """Token ids; spans [a, b) of what the assistant says, its end token included; for each copied token
    the position that predicts it and the position it is copied from; positions of stressed tokens."""

    ids: list[int]
    spans: list[tuple[int, int]]
    guides: list[tuple[int, int]]
    stressed: set[int]


class Renderer:
    """Dialogues -> examples, through the product's own prompt code."""

    def __init__(self, folder: Path) -> None:
        self.prompts = Prompts(folder, "april")

    def conversation(self, dialogue: Dialogue, messages: list[Message] | None = None) -> Conversation:
        return Conversation(
            dialogue.messages if messages is None else messages,
            thinking_mode=dialogue.think != "off",
            reasoning_effort=self.prompts.effort[dialogue.think],
            tools=dialogue.tools,
            response_format="json_object" if dialogue.json else "text",
        )

    def example(self, dialogue: Dialogue) -> Example:
        marks = self.prompts.markers
        if dialogue.think != "off" and dialogue.tools is None:
            ids = self._thinking(dialogue)
        else:
            ids = self.prompts.encode(self.conversation(dialogue))
            ids = ids[: len(ids) - ids[::-1].index(marks.end)]  # drop the opener after the last answer
        spans = []
        for i in range(1, len(ids)):
            if ids[i - 1] == marks.assistant and ids[i] in (marks.think, marks.end_think):
                spans.append((i + 1, ids.index(marks.end, i) + 1))
        guides = self._guides(ids, spans, dialogue.copied)
        return Example(ids, spans, guides, self._places(ids, dialogue.stressed))

    def _places(self, ids: list[int], words: tuple[str, ...]) -> set[int]:
        found: set[int] = set()
        for text in (*words, *(f" {word}" for word in words)):
            tokens = self.prompts.tokenizer.encode(text)
            for i in range(len(ids) - len(tokens) + 1):
                if ids[i : i + len(tokens)] == tokens:
                    found.update(range(i, i + len(tokens)))
        return found

    def _thinking(self, dialogue: Dialogue) -> list[int]:
        """Without tools the rendering drops the reasoning of answered turns: the last turn is spelt out."""
        encode, marks, last = self.prompts.tokenizer.encode, self.prompts.markers, dialogue.messages[-1]
        ids = self.prompts.encode(self.conversation(dialogue, dialogue.messages[:-1]))
        said = encode(last.reasoning_content or "")
        return [*ids, *said, marks.end_think, *encode(last.content or ""), marks.end]

    def _guides(
        self, ids: list[int], spans: list[tuple[int, int]], copied: tuple[str, ...]
    ) -> list[tuple[int, int]]:
        found = []
        for value in copied:
            tokens = self.prompts.tokenizer.encode(value)
            first, length = tokens[0], len(tokens)
            places = [i for i, token in enumerate(ids) if token == first and ids[i : i + length] == tokens]
            for before, place in zip(places, places[1:], strict=False):
                if any(a <= place < b for a, b in spans):
                    found += [(place + j - 1, before + j) for j in range(length)]
        return sorted(found)
