"""Chat Completions: a body -> ParsedRequest.

Chat Completions on the wire.
"""

from __future__ import annotations

import json
from typing import Any

from deepseek_recipe import ChatCompletionRequest, ChatCompletionResponse

from dsv4_mlx.grammar.rules import Json, Regex
from dsv4_mlx.scheduler.turn_cache import Call, Completion
from dsv4_mlx.server.api_errors import ApiError, invalid
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.content import chat_part
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
from dsv4_mlx.server.protocols.stream import StreamEncoder, frame, is_object
from dsv4_mlx.server.protocols.tools import (
    arguments_text,
    chosen,
    custom_function,
    custom_input,
    rendered,
    with_description,
    with_schema,
)

_ROLES = {"developer": "system", "function": "tool"}


def read(body: Body, facts: ServerInfo) -> ParsedRequest:
    """Raises ApiError 400 for what can't be done; fields nobody knows are ignored."""
    limits = facts.options.limits
    one_choice(body)
    thinking = resolve(body, facts.options.think)
    functions = _functions(body, limits)
    tools = chosen(_choice(body), functions, one=not flag(body, "parallel_tool_calls", True))
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
    """Declared functions; custom tools as functions of one text."""
    declared = objects_of(body, "tools", limits.tools)
    found = [
        custom_function(object_of(tool, "custom"), "tools") if tool.get("type") == "custom" else _named(tool)
        for tool in declared
    ]
    return found + [_named({"function": one}) for one in objects_of(body, "functions", limits.tools)]


def _named(tool: Body) -> Body:
    function = object_of(tool, "function")
    text(function, "name")
    return with_schema({"name": "", **function}, "parameters")


def _choice(body: Body) -> Any:
    legacy = body.get("function_call")
    if legacy is not None and "tool_choice" in body:
        raise invalid("function_call and tool_choice are the same wish: give one", "function_call")
    named = {"type": "function", **legacy} if isinstance(legacy, dict) else legacy
    return body.get("tool_choice", named)


def _message(message: Body) -> Body:
    """A message as the library takes it: roles renamed, nulls and empty lists left out."""
    kept = {name: value for name, value in message.items() if value is not None and value != []}
    role = kept.get("role")
    kept["role"] = _ROLES.get(role, role) if isinstance(role, str) else role
    kept["content"] = _content(kept.get("content", ""))
    if "reasoning_content" not in kept and isinstance(kept.get("reasoning"), str):
        kept["reasoning_content"] = kept["reasoning"]
    kept.pop("reasoning", None)
    if isinstance(refusal := kept.pop("refusal", None), str):
        said = kept["content"]
        kept["content"] = [*_parts(said), {"type": "text", "text": refusal}] if said else refusal
    if isinstance(legacy := kept.pop("function_call", None), dict):
        calls = kept.get("tool_calls")
        kept["tool_calls"] = [
            {"id": "function", "function": legacy},
            *(calls if isinstance(calls, list) else ()),
        ]
    if role == "function":
        kept.setdefault("tool_call_id", "function")
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_call(call, at) for at, call in enumerate(kept["tool_calls"])]
    return kept


def _call(call: Any, at: int) -> Any:
    custom = call.get("custom") if isinstance(call, dict) else None
    if isinstance(custom, dict):
        call = {**call, "function": {**custom, "arguments": {"input": custom.get("input", "")}}}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call  # the library says what is wrong with it
    return {
        "id": call.get("id") or f"call_{at}",
        "type": "function",
        "function": {"name": function.get("name"), "arguments": arguments_text(function.get("arguments"))},
    }


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [chat_part(part) for part in content]


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
        described = {"name": "answer", **with_description(object_of(asked, "json_schema"))}
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

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._held: dict[int, Body] = {}  # calls of custom tools whose text is not whole yet

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
        if "tool_calls" in choice["delta"] and not self._customs(choice):
            return []
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
            message["tool_calls"] = [self._custom(call) for call in calls]
        if not self.ask.thinking.shown:
            _without_reasoning(message)
        message["content"] = message.get("content") or ""
        self._original_spelling(choice)
        given["usage"] = with_writes(given["usage"])
        return given

    def completion(self) -> Completion:
        message = json.loads(self._answer.to_json())["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        made = (Call(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls)
        return Completion(message.get("reasoning_content") or "", message.get("content") or "", tuple(made))

    def failed(self, refusal: ApiError, request_id: str) -> list[str]:
        return [frame(refusal.body("openai", request_id))]

    def _customs(self, choice: Body) -> bool:
        """Calls of custom tools are told when their text is whole; whether anything is left to say."""
        told = []
        for call in choice["delta"].pop("tool_calls") or []:
            held = self._held
            name = call["function"].get("name")
            if name in self.ask.tools.customs:
                held[call["index"]] = {**call, "function": {"name": name, "arguments": ""}}
            if (begun := held.get(call["index"])) is None:
                told.append(call)
                continue
            begun["function"]["arguments"] += call["function"].get("arguments") or ""
            if is_object(begun["function"]["arguments"]):
                told.append(self._custom(held.pop(call["index"])))
        if told:
            choice["delta"]["tool_calls"] = told
        return bool(told or choice["delta"] or choice["finish_reason"])

    def _custom(self, call: Body) -> Body:
        function = call["function"]
        if function["name"] not in self.ask.tools.customs:
            return call
        custom = {"name": function["name"], "input": custom_input(function["arguments"])}
        kept = {name: value for name, value in call.items() if name != "function"}
        return {**kept, "type": "custom", "custom": custom}

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
