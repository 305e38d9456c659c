"""Responses: a body -> ParsedRequest.

Responses on the wire.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from deepseek_recipe import Conversation, InferenceChunk, ResponsesRequest, ResponsesResponse, StreamProcessor

from dsv4_mlx.grammar.rules import Json
from dsv4_mlx.scheduler.turn_cache import Call, Completion
from dsv4_mlx.server.api_errors import ApiError, invalid, unsupported
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.content import hosted_items, responses_part, specification
from dsv4_mlx.server.protocols.fields import Body, flag, most_tokens, object_of, objects_of, text, whole
from dsv4_mlx.server.protocols.options import ThinkingOptions, resolve, sampling
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

_LIBRARY_MOST = 393_216  # the largest max_output_tokens that the library takes
_HANDLE = re.compile(r"resp_(.+)-\d+")  # encrypted_content as the library makes it from the response's id
_CALLS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_PATCH = "apply_patch"  # the one custom tool that the library knows, in the words of the model's training
_ECHOED = (
    "instructions", "max_output_tokens", "parallel_tool_calls", "reasoning", "text", "tool_choice", "tools",
    "temperature", "top_p", "top_logprobs", "truncation", "user", "metadata", "service_tier",
    "prompt_cache_key", "safety_identifier",
)  # fmt: skip


def read(body: Body, facts: ServerInfo) -> ParsedRequest:
    """Raises ApiError 400 for what can't be done; fields nobody knows are ignored."""
    limits = facts.options.limits
    _check_stateless(body)
    if "input" not in body and "model" in body and not body.get("instructions"):
        raise invalid("there is no input, expected a string or an array of items", "input")
    thinking = resolve(body, facts.options.think)
    declared = [_tool(tool, limits) for tool in objects_of(body, "tools", limits.tools)]
    functions = _functions(declared)
    tools = chosen(_choice(body), functions, one=not flag(body, "parallel_tool_calls", True))
    items = _items(body, limits)
    form, wanted = _form(body, items)
    most = most_tokens(body, "max_output_tokens")
    logprobs = _logprobs(body)
    sampled = sampling(body, thinking=thinking.on, mode=facts.options.sampling, vocabulary=facts.vocabulary)
    given: Body = {name: body[name] for name in _ECHOED if name in body}
    given |= {"model": NAME, "input": items, "tools": [_rendered(tool) for tool in declared], **form}
    given |= {"tool_choice": "none" if body.get("tool_choice") == "none" else "auto"}
    given |= {"max_output_tokens": min(most, _LIBRARY_MOST)} if most is not None else {}
    shown = {
        **given,
        "tools": declared,
        "reasoning": _reasoning(body, thinking),
        "text": object_of(body, "text"),
    }
    given["reasoning"] = {**shown["reasoning"], **({} if thinking.on else {"effort": "none"})}
    options = conversion()
    try:
        echo = ResponsesRequest({**shown, **_shown_choice(body)}).echo()
        asked = ResponsesRequest(given)
        namespaces = asked.namespace_tool_map(options)
        request = asked.convert(options)
    except Exception as error:  # the library has one kind for wrong types and another for wrong values
        raise refused(error) from None
    conversation = conversation_for(request, thinking, facts.levels)
    return ParsedRequest(
        protocol="responses",
        model=text(body, "model", facts.model),
        stream=flag(body, "stream"),
        thinking=thinking,
        sampling=sampled,
        max_tokens=most,
        request=request,
        parsing=request.parsing_options,
        conversation=conversation,
        handles=_handles(items, conversation),
        tools=tools,
        wanted=wanted,
        logprobs=logprobs,
        hint=str(body.get("prompt_cache_key") or body.get("user") or "")[:128],
        echo=echo,
        namespaces=namespaces,
    )


def _check_stateless(body: Body) -> None:
    for name in ("previous_response_id", "conversation"):
        if body.get(name):
            raise unsupported(f"{name}: this server stores no responses; send the full input", name)
    if body.get("background"):
        raise unsupported("background: this server answers at once or not at all", "background")


def _items(body: Body, limits: ServerLimits) -> list[Body]:
    given = body.get("input", "")
    if isinstance(given, str):
        return [{"role": "user", "content": given}] if given or not body.get("instructions") else []
    items = objects_of(body, "input", limits.messages)
    return _answered([one for item in items for one in _item(item)])


def _item(item: Body) -> list[Body]:
    """An item as the library takes it. Raises ApiError 400 for one that nobody here can read."""
    kind = item.get("type", "message")
    if (hosted := hosted_items(item)) is not None:
        return hosted
    if kind == "item_reference":
        raise unsupported("item_reference: this server stores no items; send the full input", "input")
    if specification()["responses"]["items"].get(str(kind)) != "read":
        raise unsupported(f"an item of type {str(kind)[:60]!r} can't be read by this model", "input")
    if kind == "function_call":
        return [{**item, "arguments": arguments_text(item.get("arguments"))}]
    for name in ("content", "output"):
        if isinstance(item.get(name), list) and kind != "reasoning":
            item = {**item, name: [responses_part(part) for part in item[name]]}
    return [item]


def _answered(items: list[Body]) -> list[Body]:
    """Every tool call with an output: one that a client lost is empty."""
    outputs = {str(item.get("call_id")) for item in items if item.get("type") in _CALLS.values()}
    out = []
    for item in items:
        out.append(item)
        kind = _CALLS.get(str(item.get("type")))
        if kind and str(item.get("call_id")) not in outputs:
            out.append({"type": kind, "call_id": item.get("call_id"), "output": ""})
    return out


def _tool(tool: Body, limits: ServerLimits) -> Body:
    kind = tool.get("type", "function")
    if kind == "namespace":
        return {**tool, "tools": [_tool(inner, limits) for inner in objects_of(tool, "tools", limits.tools)]}
    if kind == "function":
        return with_schema({"type": "function", **tool}, "parameters")
    if kind == "custom":
        custom_function(tool, "tools")  # a format that can't be is refused here
    return tool


def _functions(declared: list[Body]) -> list[Body]:
    """The tools that this model can call, by the names it sees."""
    found: list[Body] = []
    for tool in declared:
        kind = tool.get("type")
        if kind == "namespace":
            inside = [one for one in tool["tools"] if one.get("type") == "function"]
            found += [_function(one, f"{tool.get('name')}__{one.get('name')}") for one in inside]
            if len(inside) < len(tool["tools"]):
                raise unsupported(
                    f"the tools of namespace {tool.get('name')!r} are not all functions", "tools"
                )
        elif kind == "custom":
            found.append(custom_function(tool, "tools"))
        elif kind == "function":
            found.append(_function(tool, text(tool, "name")))
    return found


def _function(tool: Body, name: str) -> Body:
    return {"name": name, "parameters": tool["parameters"], "strict": tool.get("strict") is True}


def _rendered(tool: Body) -> Body:
    if tool.get("type") == "custom" and tool.get("name") != _PATCH:
        return {"type": "function", **rendered(custom_function(tool, "tools"))}
    plain = rendered(tool)
    return {**plain, "tools": [_rendered(inner) for inner in plain["tools"]]} if "tools" in plain else plain


def _choice(body: Body) -> Any:
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("namespace"):
        return {**choice, "name": f"{choice['namespace']}__{choice.get('name')}"}
    return choice


def _shown_choice(body: Body) -> Body:
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice = choice.get("mode", "auto")  # the library knows no list of them
    return {} if choice is None else {"tool_choice": choice}


def _reasoning(body: Body, thinking: ThinkingOptions) -> Body:
    return {
        k: v for k, v in object_of(body, "reasoning").items() if k in ("effort", "summary") and v is not None
    }


def _logprobs(body: Body) -> int | None:
    included = body.get("include")
    if isinstance(included, list) and "message.output_text.logprobs" in included:
        return whole(body, "top_logprobs", 0, 20, 0)
    return None


def _form(body: Body, items: list[Body]) -> tuple[Body, Json | None]:
    """text.format -> (what the library renders, what is enforced)."""
    given = object_of(body, "text")
    form = object_of(given, "format")
    kind = form.get("type", "text")
    if kind == "text":
        return {"text": given}, None
    if kind == "json_object":
        plain = {k: v for k, v in given.items() if k != "format"}
        named = "json" in json.dumps(items, ensure_ascii=False).lower()
        return {"text": given if named else plain}, Json()
    if kind == "json_schema":
        if not isinstance(form.get("schema"), dict):
            raise invalid("text.format has no schema", "text")
        wanted = Json(json.dumps(form["schema"]), strict=form.get("strict") is True)
        return {"text": {**given, "format": {"name": "answer", **with_description(form)}}}, wanted
    raise invalid(
        f"text.format.type is {str(kind)[:40]!r}, expected text, json_object or json_schema", "text"
    )


def _handles(items: list[Body], conversation: Conversation) -> dict[int, str]:
    """Handles that came back in reasoning items, by the index of their turn in the conversation."""
    turns: list[str] = []
    inside = False
    for item in items:
        kind = item.get("type", "message")
        ours = kind in ("reasoning", *_CALLS) or (kind == "message" and item.get("role") == "assistant")
        if ours and not inside:
            turns.append("")
        found = _HANDLE.fullmatch(str(item.get("encrypted_content", ""))) if kind == "reasoning" else None
        if found:
            turns[-1] = found[1]
        inside = ours or (inside and kind not in ("message", *_CALLS.values()))
    at = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    return {i: handle for i, handle in zip(at, turns, strict=True) if handle} if len(at) == len(turns) else {}


class ResponsesEncoder(StreamEncoder):
    prefix = "resp_"
    _opened: Body | None = None  # the response as it was first told
    _sequence = 0
    _name = ""  # of the function whose call is being told

    def generator(self) -> Any:
        made = ResponsesRequest.chunk_generator(self.ask.request, self.id, self.ask.model)
        if self.ask.namespaces:
            made = made.with_namespace_tool_map(with_bare_names(self.ask.namespaces))
        return made if self.ask.echo is None else made.with_echo(self.ask.echo)

    def accumulator(self) -> Any:
        return ResponsesResponse(self.id, self.ask.model, self.created, self.prompt_tokens, self.cached)

    def open(self, cached: int) -> list[str]:
        stream = StreamProcessor(self.generator(), self.ask.parsing, self.spelling.tokenizer)
        events = [json.loads(event.to_json()) for event in stream.push(InferenceChunk.ready())]
        first = [event for event in events if "response" in event]
        frames = [text for event in first for text in self.event(event)]
        self._opened = first[0]["response"]
        return frames

    def keep_alive(self, done: int, total: int) -> list[str]:
        """A real event: idle timers of clients are not re-armed by comments."""
        assert self._opened is not None  # noqa: S101 - `open` comes first
        return self._numbered({"type": "response.in_progress", "response": self._opened})

    def event(self, given: Body) -> list[str]:
        if self._opened is not None and given["type"] in ("response.created", "response.in_progress"):
            return []
        if response := given.get("response"):
            self._complete(response)
            response["output"] = [self._custom(item) for item in response["output"]]
        elif item := given.get("item"):
            self._name = item.get("name", "")
            given["item"] = self._custom(item)
        elif given["type"].startswith("response.function_call_arguments."):
            return self._arguments(given)
        return self._numbered(given)

    def _arguments(self, given: Body) -> list[str]:
        """A custom tool's text comes at once: its pieces would be pieces of JSON."""
        done = given["type"].endswith(".done")
        if self._name not in self._customs:
            # the specification requires a name, the library leaves it out
            return self._numbered({**given, "name": self._name} if done else given)
        if not done:
            return []
        whole = custom_input(given["arguments"]) if is_object(given["arguments"]) else ""
        place = {name: given[name] for name in ("item_id", "output_index")}
        said = {"type": "response.custom_tool_call_input.delta", **place, "delta": whole}
        ended = {"type": "response.custom_tool_call_input.done", **place, "input": whole}
        return self._numbered(said) + self._numbered(ended)

    @property
    def _customs(self) -> frozenset[str]:
        """Custom tools that were functions to the library."""
        return self.ask.tools.customs - {_PATCH}

    def _custom(self, item: Body) -> Body:
        if item["type"] != "function_call" or item["name"] not in self._customs:
            return item
        arguments = item["arguments"]
        kept = {name: value for name, value in item.items() if name != "arguments"}
        return {
            **kept,
            "type": "custom_tool_call",
            "input": custom_input(arguments) if is_object(arguments) else "",
        }

    def whole(self, given: Body) -> Body:
        self._complete(given)
        if self.unfinished:
            given["output"] = [
                i for i in given["output"] if i["type"] != "function_call" or is_object(i["arguments"])
            ]
        given["output"] = [self._custom(item) for item in given["output"]]
        return given

    def completion(self) -> Completion:
        items = json.loads(self._answer.to_json())["output"]
        reasoning = "".join(p["text"] for i in items if i["type"] == "reasoning" for p in i["content"])
        content = "".join(p["text"] for i in items if i["type"] == "message" for p in i["content"])
        calls = (i for i in items if i["type"] in ("function_call", "custom_tool_call"))
        return Completion(reasoning, content, tuple(_call(i) for i in calls))

    def failed(self, refusal: ApiError, request_id: str) -> list[str]:
        frames = [] if self._opened is not None else self.open(0)
        assert self._opened is not None  # noqa: S101 - just done
        error = {
            "code": "rate_limit_exceeded" if refusal.status == 429 else "server_error",
            "message": str(refusal),
        }
        failed = {**self._opened, "status": "failed", "error": error}
        return [*frames, *self._numbered({"type": "response.failed", "response": failed})]

    def _numbered(self, event: Body) -> list[str]:
        event["sequence_number"] = self._sequence
        self._sequence += 1
        return [frame(event, event["type"])]

    def _complete(self, response: Body) -> None:
        response["created_at"] = self.created
        if usage := response.get("usage"):
            details = usage["input_tokens_details"]
            details.setdefault("cache_write_tokens", usage["input_tokens"] - details["cached_tokens"])


def with_bare_names(namespaces: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The model may leave the namespace out: a local name that only one namespace has is understood."""
    counts = Counter(local for _, local in namespaces.values())
    bare = {local: (space, local) for space, local in namespaces.values() if counts[local] == 1}
    return {**bare, **namespaces}


def _call(item: Body) -> Call:
    name = f"{item['namespace']}__{item['name']}" if item.get("namespace") else item["name"]
    if item["type"] == "custom_tool_call":
        return Call(item["call_id"], name, json.dumps({"input": item["input"]}, ensure_ascii=False))
    return Call(item["call_id"], name, item["arguments"])
