"""A call in Python -> ParsedRequest, read as Chat Completions are; its answer as pieces of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dsv4_mlx.engine.decode import PrefillProgress
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import DoesNotFit, InputError, UsageError
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.turn_cache import Call
from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.protocols import chat
from dsv4_mlx.server.protocols.chat import ChatEncoder
from dsv4_mlx.server.protocols.fields import Body, parse
from dsv4_mlx.server.protocols.request import ParsedRequest
from dsv4_mlx.server.protocols.stream import is_object
from dsv4_mlx.server.translate import Translator
from dsv4_mlx.tokenizer.output_parser import Piece, pieces

EFFORT: dict[str, dict[str, Any]] = {
    "off": {"thinking": {"type": "disabled"}},
    "on": {"thinking": {"type": "enabled"}, "reasoning_effort": "high"},
    "max": {"thinking": {"type": "enabled"}, "reasoning_effort": "max"},
}
Reason = Literal["stop", "tool_calls", "length"]


@dataclass(frozen=True)
class Answer:
    """One answer, whole; printed it is its text.

    `tool_calls`: those that are complete, arguments as JSON text. `reason`: "stop" (the model's end or a stop
    string), "tool_calls", or "length" (max_tokens or the context). `tokens`: how many were sampled, thinking
    included.
    """

    text: str
    thinking: str
    tool_calls: tuple[Call, ...]
    reason: Reason
    tokens: int

    def __str__(self) -> str:
        return self.text


AnswerEvent = PrefillProgress | Piece | Answer


def read(
    translator: Translator,
    messages: Any,
    think: Any,
    system: Any,
    schema: Any,
    sampling: SamplingOptions,
    **fields: Any,
) -> tuple[ParsedRequest, GenerationRequest]:
    """`fields`: those of Chat Completions. Raises UsageError, InputError, DoesNotFit."""
    if not isinstance(think, str) or think not in EFFORT:
        raise UsageError(f"think is {shown(think)}, expected one of {', '.join(map(repr, EFFORT))}")
    body: Body = {
        "messages": _messages(messages, system),
        "response_format": _form(schema),
        "stop": sampling.stop_strings,
        **EFFORT[think],
        **fields,
    }
    facts = translator.facts
    sampling.check(facts.vocabulary)
    try:
        raw = json.dumps(body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages, tools or schema can't be written as JSON: {error}") from None
    try:
        ask = chat.read(parse(raw, facts.options.limits), facts)
        ask = replace(ask, sampling=sampling, stream=True)
        return ask, translator.job(ask)
    except ApiError as refusal:
        if refusal.code == "context_length_exceeded":
            raise DoesNotFit(
                f"the messages have {refusal.extra['n_prompt_tokens']} tokens, the context holds "
                f"{facts.context}",
                next="shorten them, or load the model with a larger context",
            ) from None
        raise InputError(refusal.message) from None


class LibraryEncoder(ChatEncoder):
    """What the encoder of Chat Completions is told, as pieces of text."""

    def __init__(self, ask: ParsedRequest, translator: Translator, prompt: int) -> None:
        super().__init__(ask, translator.turns.handle(), prompt, translator.spelling)
        self._said: list[Piece] = []
        self._reason: Any = None

    def event(self, given: Body) -> list[str]:
        self._said += pieces(given)
        self._reason = given["choices"][0]["finish_reason"] or self._reason
        return []

    def taken(self) -> list[Piece]:
        """Pieces since the last call."""
        said, self._said = self._said, []
        return said

    def whole_turn(self, sampled: int) -> Answer:
        """After `finish`."""
        said = self.completion()
        calls = tuple(call for call in said.calls if is_object(call.arguments))
        return Answer(said.content, said.reasoning, calls, self._reason, sampled)


def _messages(given: Any, system: Any) -> list[Any]:
    """As Chat Completions has them. Raises UsageError for what is no list of messages."""
    if system is not None and not isinstance(system, str):
        raise UsageError(f"system is {shown(system)}, expected a str")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, Sequence) or not all(isinstance(one, Mapping) for one in given):
        raise UsageError(
            f"messages is {shown(given)}, expected a str or a list of dicts",
            next="for example [{'role': 'user', 'content': 'Why is the sky blue?'}]",
        )
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, *(dict(one) for one in given)]


def _form(schema: Any) -> Body:
    """A JSON Schema, or a class that has one -> response_format. Raises UsageError."""
    if schema is None:
        return {"type": "text"}
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, Mapping):
        raise UsageError(f"schema is {shown(schema)}, expected a JSON Schema as a dict, or a pydantic model")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}


def shown(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
