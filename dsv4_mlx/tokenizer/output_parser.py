"""Sampled token ids -> what the model said: the one parser of chat, `generate`, server and library.

The vendor's library reads the turn; here the ends that it leaves open are tied up.

    thinking that never ends      what was thought is the answer as well, unless a limit cut it off
    markers that structure text   are no text wherever they come, and the turn goes on; the end of sentence
                                  is the decode loop's, which ends the turn there
    markup of tools               that were not offered ends the turn with the text before it
    a call that was cut off       is not made whole, and the turn counts as cut off
    part of a character           at the end is left out
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deepseek_recipe import (
    ChatCompletionRequest,
    Conversation,
    ConversationRequest,
    InferenceChunk,
    InferenceFinishReason,
    ModelVersion,
    ParsingOptions,
    PromptUsage,
    StreamProcessor,
    ThinkingInitialStage,
)

from dsv4_mlx.tokenizer.template import PlainText, Spelling

Chunk = Any  # a chunk or event of one of the library's generators
Logprobs = list[tuple[float, list[tuple[int, float]]]] | None


class OutputParser:
    """One turn. Feed it `ready`, `push`es, and one `finish`; each gives the library's events.

    `over` becomes true when the text has ended the turn: a stop string, the first of one allowed call, or
    markup of tools that were not offered. What is sampled after that is not part of the turn.
    """

    def __init__(
        self, generator: Any, options: ParsingOptions, spelling: Spelling, *, tools: bool, one: bool = False
    ) -> None:
        stage = options.thinking_initial_stage
        options.special_tokens = spelling.special
        options.parse_tool_calls = tools
        self._stream = StreamProcessor(generator, options, spelling.tokenizer)
        self._spelling, self._tools, self._one = spelling, tools, one
        self._thinking = stage is not None and stage.starts_in_reasoning()
        self._thought: list[int] = []
        self._held: list[tuple[int, Logprobs]] = []  # may be the white space and "</" before a stray marker
        self._markup: PlainText | None = None  # the text from the first marker on
        self._ended = False
        self.cut = False  # after `finish`: whether a limit ended the turn, or a call was cut off

    @property
    def over(self) -> bool:
        return self._ended or self._stream.finished

    @property
    def unfinished(self) -> bool:
        """Whether a tool call was begun and not ended."""
        if self._markup is None:
            return False
        text, marker = self._markup.text, self._spelling.markup
        return text.count(f"<{marker}invoke") > text.count(f"</{marker}invoke>")

    def ready(self, prompt: int, cached: int, fingerprint: str) -> list[Chunk]:
        usage = PromptUsage(prompt_tokens=prompt, prompt_cache_hit_tokens=cached)
        return self._stream.push(InferenceChunk.ready(prompt_usage=usage, system_fingerprint=fingerprint))

    def push(
        self, id: int, logprob: float | None = None, top: Sequence[tuple[int, float]] = ()
    ) -> list[Chunk]:
        if self.over:
            return []
        spelling = self._spelling
        logprobs: Logprobs = None if logprob is None else [(logprob, list(top))]
        if id in spelling.control:
            return self._stream.push(InferenceChunk.text("", 1))  # counted, and no part of the text
        if not self._tools:
            if id == spelling.dsml:
                return self._without_markup()
            if _may_open_markup(spelling, id):
                self._held.append((id, logprobs))
                return []
        return [*self._release(), *self._push(id, logprobs)]

    def finish(self, *, length: bool) -> list[Chunk]:
        """The turn is over, by a limit (`length`) or else by its own end."""
        if self._stream.finished:
            return []
        chunks = self._release()
        if self._thinking and not length and not self._stream.finished:
            chunks += self._answer_with_thoughts()
        if self._markup is not None and self.unfinished:
            length = True  # a call that was cut off is not one to execute
            rest = _rest_of_tag(self._markup.text, self._spelling.markup)
            if rest:
                chunks += self._stream.push(InferenceChunk.text(rest, 0))
        if self._stream.finished:
            return chunks
        reason = InferenceFinishReason.Length if length else InferenceFinishReason.Stop
        self.cut = length
        return [*chunks, *self._stream.push(InferenceChunk.finish(reason)), *self._stream.finish()]

    def _push(self, id: int, logprobs: Logprobs) -> list[Chunk]:
        spelling = self._spelling
        chunks: list[Chunk] = self._stream.push(InferenceChunk.tokens([id], logprobs))
        if id in (spelling.end_think, spelling.dsml):
            self._thinking = False
        elif self._thinking:
            self._thought.append(id)
        if self._tools and (id == spelling.dsml or self._markup is not None):
            if self._markup is None:
                self._markup = PlainText(spelling)
                self._markup.push(spelling.encode("<"))  # the text before the marker ended so
            self._markup.push([id])
            if self._one and f"</{spelling.markup}invoke>" in self._markup.text:
                self._ended = True
        return chunks

    def _without_markup(self) -> list[Chunk]:
        """A call of a tool that was not offered: the turn ends with the text before it."""
        self._ended = True
        decoder = PlainText(self._spelling)
        decoder.push([id for id, _ in self._held])
        text = re.sub(r"\n*(</?)?$", "", decoder.whole())
        count, self._held = len(self._held), []
        return self._stream.push(InferenceChunk.text(text, count))

    def _release(self) -> list[Chunk]:
        held, self._held = self._held, []
        chunks: list[Chunk] = []
        for id, logprobs in held:
            if not self._stream.finished:
                chunks += self._push(id, logprobs)
        return chunks

    def _answer_with_thoughts(self) -> list[Chunk]:
        """The model ended its turn without ending its thinking: what it thought is the answer as well.

        A client that hides thinking would show nothing.
        """
        decoder = PlainText(self._spelling)
        decoder.push(self._thought)
        text = decoder.whole().strip()
        if not text:
            return []
        end = self._stream.push(InferenceChunk.text(self._spelling.special_end, 0))
        return [*end, *self._stream.push(InferenceChunk.text(text, 0))]


def _may_open_markup(spelling: Spelling, id: int) -> bool:
    text = spelling.text(id)
    return text[-1:] in ("\n", "<", "/")


def _rest_of_tag(text: str, marker: str) -> str:
    """What is missing of a parameter's closing tag: cut off, the tag would count as part of the value."""
    if text.count(f"<{marker}parameter") <= text.count(f"</{marker}parameter>"):
        return ""
    closing, at = f"</{marker}parameter>", text.rfind("<")
    tail = text[at:]
    return closing[len(tail) :] if at >= 0 and closing.startswith(tail) else ""


@dataclass(frozen=True)
class Piece:
    """Text the model just added. `kind` says where: its thinking, its answer, or a tool call's JSON."""

    kind: Literal["thinking", "answer", "tool"]
    text: str


class TextParser:
    """One turn as pieces of text. `conversation` None: a text that goes on, without thinking and tools.

    stop: strings that end the answer, and are no part of it.
    """

    def __init__(
        self, conversation: Conversation | None, spelling: Spelling, stop: Sequence[str] = ()
    ) -> None:
        stage = ThinkingInitialStage.ContentContinuation if conversation is None else None
        asked = conversation or Conversation([], thinking_mode=False)
        if asked.thinking_mode:
            stage = ThinkingInitialStage.ReasoningStart
        # V4 Flash and V4 Pro share one encoding; the library names it after Pro.
        request = ConversationRequest(asked, ModelVersion.DeepseekV4Pro)
        generator = ChatCompletionRequest.chunk_generator(request, "local", "local")
        options = ParsingOptions(thinking_initial_stage=stage, stop_sequences=list(stop))
        self._parser = OutputParser(generator, options, spelling, tools=bool(asked.tools))
        self._parser.ready(0, 0, "")

    @property
    def over(self) -> bool:
        """Whether the text has ended the turn; nothing sampled from here on is part of it."""
        return self._parser.over

    @property
    def reason(self) -> Literal["stop", "length"]:
        """After `finish`: what ended the turn."""
        return "length" if self._parser.cut else "stop"

    def push(self, token: int) -> list[Piece]:
        """Take in one sampled token."""
        return _all_pieces(self._parser.push(token))

    def finish(self, *, length: bool) -> list[Piece]:
        """The turn is over, by a limit (`length`) or else by its own end. What was held back."""
        return _all_pieces(self._parser.finish(length=length and not self.over))


def pieces(chunk: dict[str, Any]) -> Iterator[Piece]:
    """What a chunk of Chat Completions adds."""
    for choice in chunk["choices"]:
        delta = choice["delta"]
        if delta.get("reasoning_content"):
            yield Piece("thinking", delta["reasoning_content"])
        if delta.get("content"):
            yield Piece("answer", delta["content"])
        for call in delta.get("tool_calls") or []:
            function = call["function"]
            yield Piece("tool", (function.get("name") or "") + (function.get("arguments") or ""))


def _all_pieces(chunks: list[Chunk]) -> list[Piece]:
    return [piece for chunk in chunks for piece in pieces(json.loads(chunk.to_json()))]
