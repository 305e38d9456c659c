"""Sampled token ids -> pieces of thinking, answer and tool calls, as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deepseek_recipe import (
    ChatCompletionRequest,
    Conversation,
    ConversationRequest,
    InferenceChunk,
    InferenceFinishReason,
    ModelVersion,
    ParsingOptions,
    StreamProcessor,
    ThinkingInitialStage,
    Tokenizer,
)


@dataclass(frozen=True)
class Piece:
    """Text the model just added. `kind` says where: its thinking, its answer, or a tool call's JSON."""

    kind: Literal["thinking", "answer", "tool"]
    text: str


class AnswerParser:
    """Parses one assistant turn. Bytes of an unfinished character are held back until it is whole."""

    def __init__(
        self, conversation: Conversation, tokenizer: Tokenizer, stop: list[str] | None = None
    ) -> None:
        stage = ThinkingInitialStage.ReasoningStart if conversation.thinking_mode else None
        # V4 Flash and V4 Pro share one encoding; the library names it after Pro.
        request = ConversationRequest(conversation, ModelVersion.DeepseekV4Pro)
        generator = ChatCompletionRequest.chunk_generator(request, "local", "local")
        options = ParsingOptions(
            parse_tool_calls=bool(conversation.tools), thinking_initial_stage=stage, stop_sequences=stop
        )
        self._stream = StreamProcessor(generator, options, tokenizer)
        self._stream.push(InferenceChunk.ready())

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the turn."""
        return self._stream.finished

    def push(self, token: int) -> Iterator[Piece]:
        """Take in one sampled token."""
        for chunk in self._stream.push(InferenceChunk.tokens([token])):
            yield from _pieces(chunk.to_json())

    def finish(self, *, length: bool) -> Iterator[Piece]:
        """The turn is over: by its end token, or (`length`) by a limit. Yields what was held back."""
        if self._stream.finished:
            return
        reason = InferenceFinishReason.Length if length else InferenceFinishReason.Stop
        for chunk in [*self._stream.push(InferenceChunk.finish(reason)), *self._stream.finish()]:
            yield from _pieces(chunk.to_json())


def _pieces(chunk: str) -> Iterator[Piece]:
    for choice in json.loads(chunk)["choices"]:
        delta = choice["delta"]
        if delta.get("reasoning_content"):
            yield Piece("thinking", delta["reasoning_content"])
        if delta.get("content"):
            yield Piece("answer", delta["content"])
        for call in delta.get("tool_calls") or []:
            function = call["function"]
            yield Piece("tool", (function.get("name") or "") + (function.get("arguments") or ""))
