"""Chat Completions: a body -> ParsedRequest.

Chat Completions and text completions on the wire.
"""

from __future__ import annotations

import json
from typing import Any

from deepseek_recipe import ChatCompletionRequest, ChatCompletionResponse

from dsv4_mlx.grammar.rules import Json, Regex
from dsv4_mlx.scheduler.turn_cache import Call, Completion
from dsv4_mlx.server.api_errors import ApiError, invalid, unsupported
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.fields import (
    Body,
    flag,
    logprobs_of,
    most_tokens,
    object_of,
    objects_of,
    one_choice,
    stops,
    text,
)
from dsv4_mlx.server.protocols.options import resolve, sampling
from dsv4_mlx.server.protocols.request import (
    NAME,
    ParsedRequest,
    ServerInfo,
    conversation_for,
    conversion,
    refused,
)
from dsv4_mlx.server.protocols.stream import FINGERPRINT, StreamEncoder, frame, is_object
from dsv4_mlx.server.protocols.tools import arguments_text, chosen, rendered, with_schema

_ROLES = {"developer": "system", "function": "tool"}
_TEXT_PARTS = ("input_text", "output_text")


def read(body: Body, facts: ServerInfo) -> ParsedRequest:
    """Raises ApiError 400 for what can't be done; fields nobody knows are ignored."""
    limits = facts.options.limits
    one_choice(body)
    thinking = resolve(body, facts.options.think)
    functions = _functions(body, limits)
    tools = chosen(body.get("tool_choice"), functions, one=not flag(body, "parallel_tool_calls", True))
    messages = [_message(one) for one in objects_of(body, "messages", limits.messages)]
    if not messages:
        raise invalid("messages is empty, expected at least one message", "messages")
    logprobs = logprobs_of(body)
    form, wanted = _form(body, messages)
    given: Body = {
        "model": NAME,
        "messages": _answered(messages),
        "thinking": {"type": "enabled" if thinking.on else "disabled"},
        "stop": stops(body, "stop", limits),
        "logprobs": logprobs is not None,
        **form,
    }
    if tools.offered:
        given["tools"] = [{"type": "function", "function": one} for one in map(rendered, functions)]
    try:
        request = ChatCompletionRequest(given).convert(conversion())
    except Exception as error:  # the library has one kind for wrong types and another for wrong values
        raise refused(error) from None
    streaming = flag(body, "stream")
    return ParsedRequest(
        protocol="chat",
        model=text(body, "model", facts.model),
        stream=streaming,
        thinking=thinking,
        sampling=sampling(
            body, thinking=thinking.on, mode=facts.options.sampling, vocabulary=facts.vocabulary
        ),
        max_tokens=most_tokens(body, "max_tokens", "max_completion_tokens"),
        request=request,
        parsing=request.parsing_options,
        conversation=conversation_for(request, thinking, facts.levels),
        tools=tools,
        wanted=wanted,
        logprobs=logprobs,
        usage=flag(object_of(body, "stream_options"), "include_usage"),
        hint=str(body.get("prompt_cache_key") or body.get("user") or "")[:128],
    )


def _functions(body: Body, limits: ServerLimits) -> list[Body]:
    """Declared functions; other kinds of tools run elsewhere and are left out."""
    declared = objects_of(body, "tools", limits.tools)
    found = [object_of(tool, "function") for tool in declared if tool.get("type", "function") == "function"]
    found = found or objects_of(body, "functions", limits.tools)
    for function in found:
        text(function, "name")
    return [with_schema({"name": "", **function}, "parameters") for function in found]


def _message(message: Body) -> Body:
    """A message as the library takes it: roles renamed, nulls and empty lists left out."""
    kept = {name: value for name, value in message.items() if value is not None and value != []}
    role = kept.get("role")
    kept["role"] = _ROLES.get(role, role) if isinstance(role, str) else role
    kept["content"] = _content(kept.get("content", ""))
    if "reasoning_content" not in kept and isinstance(kept.get("reasoning"), str):
        kept["reasoning_content"] = kept["reasoning"]
    kept.pop("reasoning", None)
    if isinstance(legacy := kept.pop("function_call", None), dict):
        kept["tool_calls"] = [{"id": "function", "function": legacy}]
    if role == "function":
        kept.setdefault("tool_call_id", "function")
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_call(call, at) for at, call in enumerate(kept["tool_calls"])]
    return kept


def _call(call: Any, at: int) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call  # the library says what is wrong with it
    return {
        "id": call.get("id") or f"call_{at}",
        "type": "function",
        "function": {"name": function.get("name"), "arguments": arguments_text(function.get("arguments"))},
    }


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [_part(part) for part in content]


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return {"type": "text", "text": part} if isinstance(part, str) else part
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text", "")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal", "")}
    if kind in ("input_audio", "audio", "video_url", "input_video"):
        raise unsupported(f"content of type {kind!r} can't be read by this model", "messages")
    return part


def _answered(messages: list[Body]) -> list[Body]:
    """Every tool call with a result: one that a client lost is empty."""
    out: list[Body] = []
    waiting: dict[str, None] = {}

    def close() -> None:
        out.extend({"role": "tool", "tool_call_id": id, "content": ""} for id in waiting)
        waiting.clear()

    for message in messages:
        if message["role"] == "tool":
            waiting.pop(str(message.get("tool_call_id")), None)
        else:
            close()
        out.append(message)
        calls = message.get("tool_calls") if message["role"] == "assistant" else None
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                waiting[call["id"]] = None
    close()
    return out


def _form(body: Body, messages: list[Body]) -> tuple[Body, Json | Regex | None]:
    """response_format -> (what the library renders, what is enforced)."""
    asked = object_of(body, "response_format")
    kind = asked.get("type", "text")
    if kind == "text":
        return {}, None
    if kind == "json_object":
        # The library wants the word in the prompt, without which a model may never begin; a grammar makes it.
        named = "json" in json.dumps(messages, ensure_ascii=False).lower()
        return ({"response_format": {"type": kind}} if named else {}), Json()
    if kind == "json_schema":
        schema = object_of(asked, "json_schema").get("schema")
        if not isinstance(schema, dict):
            raise invalid("response_format.json_schema has no schema", "response_format")
        described = {"name": "answer", **object_of(asked, "json_schema")}
        return {"response_format": {**asked, "json_schema": described}}, Json(
            json.dumps(schema), strict=described.get("strict") is True
        )
    if kind == "regex":
        pattern = asked.get("regex", asked.get("pattern"))
        if not isinstance(pattern, str):
            raise invalid("response_format has no regex", "response_format")
        return {"response_format": {"type": "regex", "regex": pattern}}, Regex(pattern)
    raise invalid(
        f"response_format.type is {str(kind)[:40]!r}, expected text, json_object, json_schema or regex",
        "response_format",
    )


DONE = "data: [DONE]\n\n"


class ChatEncoder(StreamEncoder):
    prefix = "chatcmpl-"

    def generator(self) -> Any:
        return ChatCompletionRequest.chunk_generator(self.ask.request, self.id, self.ask.model)

    def accumulator(self) -> Any:
        return ChatCompletionResponse(self.id, self.ask.model, self.created, self.prompt_tokens, self.cached)

    def event(self, given: Body) -> list[str]:
        given["created"] = self.created
        usage = given.pop("usage", None)
        choice = given["choices"][0]
        if not self.ask.thinking.shown and not _without_reasoning(choice["delta"]):
            return []
        self._original_spelling(choice)
        if self.ask.usage:
            given["usage"] = None
        frames = [frame(given)]
        if choice["finish_reason"] is not None:
            if self.ask.usage:
                frames.append(frame({**given, "choices": [], "usage": with_writes(usage)}))
            frames.append(DONE)
        return frames

    def whole(self, given: Body) -> Body:
        choice = given["choices"][0]
        message = choice["message"]
        calls = [
            call for call in message.pop("tool_calls", None) or [] if is_object(call["function"]["arguments"])
        ]
        for call in calls:
            call.pop("index", None)
        if calls:
            message["tool_calls"] = calls
        if not self.ask.thinking.shown:
            _without_reasoning(message)
        message["content"] = message.get("content") or ""
        self._original_spelling(choice)
        given["usage"] = with_writes(given["usage"])
        return given

    def completion(self) -> Completion:
        import json

        message = json.loads(self._answer.to_json())["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        made = (Call(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls)
        return Completion(message.get("reasoning_content") or "", message.get("content") or "", tuple(made))

    def failed(self, refusal: ApiError, request_id: str) -> list[str]:
        return [frame(refusal.body("openai", request_id))]

    def _original_spelling(self, choice: Body) -> None:
        """Markers among the alternatives come in the parser's spelling."""
        logprobs = choice.get("logprobs")
        for entries in (logprobs or {}).values():
            for entry in entries or ():
                for one in (entry, *entry.get("top_logprobs", ())):
                    text = self.spelling.original(one["token"])
                    if text != one["token"]:
                        one |= {"token": text, "bytes": list(text.encode())}


def _without_reasoning(message: Body) -> bool:
    """Take the thinking out; whether anything is left to say."""
    hidden = message.pop("reasoning_content", None)
    return not hidden or bool(message.get("content")) or "tool_calls" in message or "role" in message


def with_writes(usage: Body) -> Body:
    """Usage with the prompt tokens that were computed, and so are cached now."""
    details = {**usage["prompt_tokens_details"], "cache_write_tokens": usage["prompt_cache_miss_tokens"]}
    return {**usage, "prompt_tokens_details": details}


class CompletionsEncoder(ChatEncoder):
    """The library knows no text completions: its chat chunks, reshaped."""

    prefix = "cmpl-"
    _said = 0  # characters in the events so far

    def event(self, given: Body) -> list[str]:
        choice = given["choices"][0]
        echoed = "role" in choice["delta"]
        text = self.ask.prompt_text if echoed else choice["delta"].get("content") or ""
        if echoed and not text:
            return []
        self._original_spelling(choice)
        shaped = self._shaped(text, choice, self._said)
        self._said += len(text)
        frames = [frame({**shaped, "usage": None} if self.ask.usage else shaped)]
        if choice["finish_reason"] is not None:
            if self.ask.usage:
                frames.append(frame({**shaped, "choices": [], "usage": with_writes(given["usage"])}))
            frames.append(DONE)
        return frames

    def whole(self, given: Body) -> Body:
        choice = given["choices"][0]
        self._original_spelling(choice)
        text = self.ask.prompt_text + (choice["message"].get("content") or "")
        return {**self._shaped(text, choice, len(self.ask.prompt_text)), "usage": with_writes(given["usage"])}

    def _shaped(self, text: str, choice: Body, at: int) -> Body:
        entry = {
            "text": text,
            "index": 0,
            "logprobs": _legacy(choice.get("logprobs"), at),
            "finish_reason": choice["finish_reason"],
        }
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [entry],
        }


def _legacy(logprobs: Body | None, at: int) -> Body | None:
    entries = (logprobs or {}).get("content")
    if not entries:
        return None
    offsets = []
    for entry in entries:
        offsets.append(at)
        at += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries
        ],
        "text_offset": offsets,
    }
