"""Messages: a body -> ParsedRequest.

Messages on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from deepseek_recipe import (
    AssistantMessage,
    Conversation,
    InferenceChunk,
    MessagesRequest,
    MessagesResponse,
    PromptUsage,
    StreamProcessor,
    ThinkingInitialStage,
)

from dsv4_mlx.grammar.rules import Json
from dsv4_mlx.scheduler.turn_cache import Call, Completion
from dsv4_mlx.server.api_errors import ApiError, invalid
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.content import HOSTED_CALLS, hosted_result, messages_blocks
from dsv4_mlx.server.protocols.fields import Body, flag, most_tokens, object_of, objects_of, stops, text
from dsv4_mlx.server.protocols.options import resolve, sampling
from dsv4_mlx.server.protocols.request import (
    NAME,
    ParsedRequest,
    ServerInfo,
    conversation_for,
    conversion,
    refused,
)
from dsv4_mlx.server.protocols.stream import StreamEncoder, frame
from dsv4_mlx.server.protocols.tools import chosen, rendered, with_schema

_LIBRARY_MOST = 393_216  # the largest max_tokens that the library takes


def read(body: Body, facts: ServerInfo) -> ParsedRequest:
    """Raises ApiError 400 for what can't be done; fields nobody knows are ignored."""
    limits = facts.options.limits
    thinking = resolve(body, facts.options.think)
    declared = _tools(body, limits)
    choice = object_of(body, "tool_choice")
    functions = [{"parameters": tool["input_schema"], **tool} for tool in declared]
    for function in functions:
        del function["input_schema"]
    tools = chosen(choice or None, functions, one=flag(choice, "disable_parallel_tool_use"))
    messages = [one for given in objects_of(body, "messages", limits.messages) for one in _messages(given)]
    if not messages:
        raise invalid("messages is empty, expected at least one message", "messages")
    most = most_tokens(body, "max_tokens")
    messages = _answered(messages)
    continued = messages[-1].get("role") == "assistant"
    given: Body = {
        "model": NAME,
        "messages": messages,
        "max_tokens": min(most or _LIBRARY_MOST, _LIBRARY_MOST),
        "thinking": {"type": "enabled" if thinking.on else "disabled"},
        "stop_sequences": stops(body, "stop_sequences", limits),
    }
    if "system" in body:
        given["system"] = messages_blocks(body["system"])
    if tools.offered:
        given["tools"] = [rendered(tool) for tool in declared]
    try:
        request = shown = MessagesRequest(given).convert(conversion())
        if continued:  # an answer that the client began has no thinking to show
            shown = MessagesRequest({**given, "thinking": {"type": "disabled"}}).convert(conversion())
    except Exception as error:  # the library has one kind for wrong types and another for wrong values
        raise refused(error) from None
    wanted = _wanted(body)
    # the library reads no schema here
    form = {} if wanted is None else {"response_schema": json.loads(wanted.schema)}
    made = partial(conversation_for, request, thinking, facts.levels, **form)
    conversation = made()
    parsing = request.parsing_options
    if continued:
        conversation = _continued(conversation, made)
        parsing.thinking_initial_stage = ThinkingInitialStage.ContentContinuation if thinking.on else None
    return ParsedRequest(
        protocol="messages",
        model=text(body, "model", facts.model),
        stream=flag(body, "stream"),
        thinking=thinking,
        sampling=sampling(
            body, thinking=thinking.on, mode=facts.options.sampling, vocabulary=facts.vocabulary
        ),
        max_tokens=most,
        request=shown,
        parsing=parsing,
        conversation=conversation,
        handles=_handles(given["messages"], conversation),
        tools=tools,
        wanted=wanted,
        hint=str(object_of(body, "metadata").get("user_id") or "")[:128],
    )


def _tools(body: Body, limits: ServerLimits) -> list[Body]:
    """Declared functions; the vendor's own kinds, which have no schema, run elsewhere and are left out."""
    found = []
    for tool in objects_of(body, "tools", limits.tools):
        if tool.get("type", "custom") in ("custom", "function"):
            kept: Body = {k: tool[k] for k in ("description", "input_schema", "strict") if k in tool}
            found.append(with_schema({"name": text(tool, "name"), **kept}, "input_schema"))
    return found


def _messages(message: Body) -> list[Body]:
    """A message as the library takes it; more than one where it holds calls that another server ran."""
    content = message.get("content")
    if not isinstance(content, list):
        return [message]
    out: list[Body] = []
    kept: list[Any] = []

    def close(role: Any, blocks: list[Any]) -> None:
        read = messages_blocks(blocks)
        if blocks:
            out.append({**message, "role": role, "content": read or ""})

    for block in content:
        kind = str(block.get("type")) if isinstance(block, dict) else ""
        if kind in HOSTED_CALLS:
            kept.append({**_without_type(block), "type": "tool_use"})
        elif kind.endswith("_tool_result"):
            close(message.get("role"), kept)
            close("user", [hosted_result(block)])
            kept = []
        else:
            kept.append(block)
    close(message.get("role"), kept)
    return out or [{**message, "content": ""}]


def _without_type(block: Body) -> Body:
    return {name: block[name] for name in ("id", "name", "input") if name in block}


def _answered(messages: list[Body]) -> list[Body]:
    """Every tool call with a result: one that a client lost is empty."""
    out: list[Body] = []
    waiting: list[str] = []
    for message in messages:
        blocks = message.get("content")
        if waiting and message.get("role") != "system":
            answered = {str(b.get("tool_use_id")) for b in _blocks(blocks)}
            lost = [_result(id) for id in waiting if id not in answered]
            if message.get("role") != "user":
                out.append({"role": "user", "content": lost}) if lost else None
            elif lost:
                rest = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
                message = {**message, "content": lost + (rest if isinstance(rest, list) else [rest])}
            waiting = []
        out.append(message)
        if message.get("role") == "assistant":
            waiting = [
                str(b.get("id")) for b in _blocks(message.get("content")) if b.get("type") == "tool_use"
            ]
    if waiting:
        out.append({"role": "user", "content": [_result(id) for id in waiting]})
    return out


def _result(id: str) -> Body:
    return {"type": "tool_result", "tool_use_id": id, "content": ""}


def _blocks(content: Any) -> list[Body]:
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _continued(conversation: Conversation, made: Callable[..., Conversation]) -> Conversation:
    """The last assistant message is the beginning of the answer."""
    messages = conversation.messages
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls:
        return conversation
    opened = AssistantMessage(last.content, last.reasoning_content, None, True)
    return made(messages=[*messages[:-1], opened])


def _handles(messages: list[Body], conversation: Conversation) -> dict[int, str]:
    """Signatures that came back, by the index of their message in the conversation."""
    at = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    signed = [
        next((str(b["signature"]) for b in _blocks(m.get("content")) if b.get("signature")), "")
        for m in messages
        if m.get("role") == "assistant"
    ]
    return (
        {i: handle for i, handle in zip(at, signed, strict=True) if handle} if len(at) == len(signed) else {}
    )


def _wanted(body: Body) -> Json | None:
    form = object_of(object_of(body, "output_config"), "format") or object_of(body, "output_format")
    if not form:
        return None
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise invalid("output_config.format is not a json_schema with a schema", "output_config")
    return Json(json.dumps(form["schema"]), strict=True)


PING = frame({"type": "ping"}, "ping")


class MessagesEncoder(StreamEncoder):
    prefix = "msg_"
    _opened = False

    def generator(self) -> Any:
        made = MessagesRequest.chunk_generator(self.ask.request, self.id, self.ask.model)
        return made.with_signature(self.handle)

    def accumulator(self) -> Any:
        return MessagesResponse(self.id, self.ask.model, self.created, self.prompt_tokens, self.cached)

    def open(self, cached: int) -> list[str]:
        """message_start goes out before the prompt is computed: pings are legal after it only.

        It tells what is cached if that is known by then; message_delta has the final numbers.
        """
        self._opened = True
        stream = StreamProcessor(self.generator(), self.ask.parsing, self.spelling.tokenizer)
        usage = PromptUsage(prompt_tokens=self.prompt_tokens, prompt_cache_hit_tokens=cached)
        events = [json.loads(e.to_json()) for e in stream.push(InferenceChunk.ready(prompt_usage=usage))]
        return [*(frame(e, e["type"]) for e in events if e["type"] == "message_start"), PING]

    def keep_alive(self, done: int, total: int) -> list[str]:
        return [PING]

    def event(self, given: Body) -> list[str]:
        if given["type"] == "ping" or given["type"] == "message_start" and self._opened:
            return []
        if (
            given["type"] == "message_delta"
            and self.unfinished
            and given["delta"]["stop_reason"] == "tool_use"
        ):
            given["delta"]["stop_reason"] = "max_tokens"
        return [frame(given, given["type"])]

    def whole(self, given: Body) -> Body:
        if self.unfinished and given["content"] and given["content"][-1]["type"] == "tool_use":
            del given["content"][-1]  # a call that was cut off is not one to execute
        return given

    def completion(self) -> Completion:
        blocks = json.loads(self._answer.to_json())["content"]
        texts = {kind: "".join(b[kind] for b in blocks if b["type"] == kind) for kind in ("thinking", "text")}
        calls = (b for b in blocks if b["type"] == "tool_use")
        made = (Call(b["id"], b["name"], json.dumps(b["input"], ensure_ascii=False)) for b in calls)
        return Completion(texts["thinking"], texts["text"], tuple(made))

    def failed(self, refusal: ApiError, request_id: str) -> list[str]:
        return [frame(refusal.body("anthropic", request_id), "error")]
