"""A model's turn as segments of text and markers, cut into tokens in any way; and streams read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.fakes import CHECKPOINT

from dsv4_mlx.tokenizer.template import Spelling

Segment = str | int  # text, or a marker's id


@dataclass(frozen=True)
class Turn:
    """What a model says. `calls`: (name, arguments)."""

    reasoning: str
    content: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()

    def segments(self, spelling: Spelling) -> list[Segment]:
        """As the model's own markup, thinking first (docs/model.md 5)."""
        out: list[Segment] = [self.reasoning, spelling.end_think, self.content]
        if self.calls:
            m = spelling.dsml
            out += ["\n\n<", m, "tool_calls>\n"]
            for name, arguments in self.calls:
                out += ["<", m, f'invoke name="{name}">\n']
                for key, value in arguments.items():
                    text = isinstance(value, str)
                    out += ["<", m, f'parameter name="{key}" string="{"true" if text else "false"}">']
                    out += [value if text else json.dumps(value, ensure_ascii=False)]
                    out += ["</", m, "parameter>\n"]
                out += ["</", m, "invoke>\n"]
            out += ["</", m, "tool_calls>"]
        return out


class Cutter:
    """Text -> ids, cut at any bytes."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling
        vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        self._bytes: list[int] = [vocabulary[character] for character in _byte_characters()]

    def ids(self, segments: Sequence[Segment], cuts: Sequence[int]) -> list[int]:
        """`cuts`: numbers that choose the length of each piece in turn."""
        out: list[int] = []
        at = 0
        for segment in segments:
            if isinstance(segment, int):
                out.append(segment)
                continue
            raw = segment.encode()
            while raw:
                size = 1 + cuts[at % len(cuts)] % 12 if cuts else len(raw)
                at += 1
                piece, raw = raw[:size], raw[size:]
                try:
                    out += self.spelling.encode(piece.decode())
                except UnicodeDecodeError:
                    out += [self.byte(byte) for byte in piece]
        return out

    def byte(self, value: int) -> int:
        """The token of one byte."""
        return self._bytes[value]


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@dataclass
class Read:
    """A stream as a client puts it together."""

    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] | None = None  # [name, arguments]
    end: str = ""

    def parsed(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls or []]


def events(text: str) -> list[tuple[str | None, Any]]:
    """Server-sent events: (name, JSON or "[DONE]"); comments left out."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            data = fields["data"]
            found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def read_chat(text: str) -> Read:
    read = Read(calls=[])
    assert read.calls is not None
    for _, chunk in events(text):
        for choice in [] if chunk == "[DONE]" else chunk["choices"]:
            delta = choice["delta"]
            read.reasoning += delta.get("reasoning_content") or ""
            read.content += delta.get("content") or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(read.calls)
                    read.calls.append([call["function"]["name"], ""])
                read.calls[call["index"]][1] += call["function"]["arguments"]
            read.end = choice["finish_reason"] or read.end
    return read


def read_messages(text: str) -> Read:
    read = Read(calls=[])
    assert read.calls is not None
    for name, event in events(text):
        assert name == event["type"]
        if name == "content_block_start" and event["content_block"]["type"] == "tool_use":
            read.calls.append([event["content_block"]["name"], ""])
        elif name == "content_block_delta":
            delta = event["delta"]
            read.reasoning += delta.get("thinking", "")
            read.content += delta.get("text", "")
            if delta["type"] == "input_json_delta":
                read.calls[-1][1] += delta["partial_json"]
        elif name == "message_delta":
            read.end = event["delta"]["stop_reason"]
    return read


def read_responses(text: str) -> Read:
    read = Read(calls=[])
    assert read.calls is not None
    for number, (name, event) in enumerate(events(text)):
        assert (name, number) == (event["type"], event["sequence_number"])
        if name == "response.reasoning_text.delta":
            read.reasoning += event["delta"]
        elif name == "response.output_text.delta":
            read.content += event["delta"]
        elif name == "response.output_item.added" and event["item"]["type"] == "function_call":
            read.calls.append([event["item"]["name"], ""])
        elif name == "response.function_call_arguments.delta":
            read.calls[-1][1] += event["delta"]
        elif name in ("response.completed", "response.incomplete"):
            read.end = event["response"]["status"]
    return read
