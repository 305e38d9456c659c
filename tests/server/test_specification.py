"""Every field and variant of the pinned libraries' types is classed in specification.json and treated so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

import anthropic.types as anthropic
import openai.types.chat as openai_chat
import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from typing_extensions import get_type_hints, is_typeddict

from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.protocols import chat, completions, messages, responses
from dsv4_mlx.server.protocols.content import notices, specification
from dsv4_mlx.server.protocols.request import ParsedRequest, ServerInfo
from dsv4_mlx.tokenizer.template import Prompts, Spelling

PARAMS: dict[str, Any] = {
    "chat": ChatParams,
    "completions": TextParams,
    "responses": ResponseCreateParamsBase,
    "messages": MessageCreateParamsBase,
}
HI = [{"role": "user", "content": "hi"}]
FUNCTION = {"type": "object", "properties": {"a": {"type": "string"}}}
BASE: dict[str, dict[str, Any]] = {
    "chat": {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}]},
    "completions": {"prompt": "hi"},
    "responses": {"input": "hi", "tools": [{"type": "function", "name": "f"}]},
    "messages": {"messages": HI, "max_tokens": 5, "tools": [{"name": "f", "input_schema": FUNCTION}]},
}
OTHER: dict[str, Any] = {  # a value that must change something, by the field's name
    "messages": [{"role": "user", "content": "other"}], "model": "other", "n": 2, "stop": ["x"],
    "logprobs": 2, "top_logprobs": 3, "temperature": 0.5, "top_p": 0.5, "top_k": 7, "min_p": 0.5, "seed": 7,
    "stream": True, "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 1,
    "logit_bias": {"5": 1}, "max_tokens": 7, "max_completion_tokens": 7, "max_output_tokens": 7,
    "parallel_tool_calls": False, "tool_choice": "none", "function_call": "none", "tools": [],
    "functions": [{"name": "g"}], "response_format": {"type": "json_object"}, "reasoning_effort": "none",
    "reasoning": {"effort": "none"}, "stream_options": {"include_usage": True},
    "thinking": {"type": "disabled"}, "enable_thinking": False, "think": False,
    "chat_template_kwargs": {"thinking": False}, "thinking_token_budget": 9, "include_reasoning": False,
    "best_of": 2, "echo": True, "prompt": "other", "suffix": "x", "input": "other",
    "instructions": "be kind", "background": True, "conversation": "c", "previous_response_id": "r",
    "include": ["message.output_text.logprobs"], "text": {"format": {"type": "json_object"}},
    "stop_sequences": ["x"], "system": "be kind", "output_config": {"effort": "max"},
    "output_format": {"type": "json_schema", "schema": {"type": "object"}},
}  # fmt: skip


def flat(hint: Any) -> Iterator[Any]:
    """The typed dictionaries of a union."""
    origin = get_origin(hint)
    if is_typeddict(hint):
        yield hint
    elif origin is Annotated or origin in (Required, NotRequired):
        yield from flat(get_args(hint)[0])
    elif origin is not Literal:
        for one in get_args(hint):
            yield from flat(one)


def fields(kind: Any) -> dict[str, Any]:
    return dict(get_type_hints(kind))


def variants(hint: Any) -> dict[str, Any]:
    """`type` -> its typed dictionary."""
    found: dict[str, Any] = {}
    for kind in flat(hint):
        named = fields(kind).get("type")
        while named is not None and get_origin(named) is not Literal:
            named = next(iter(get_args(named)), None)
        found |= dict.fromkeys(get_args(named), kind)
    return found


USER = fields(openai_chat.ChatCompletionUserMessageParam)["content"]
ASSISTANT = fields(openai_chat.ChatCompletionAssistantMessageParam)["content"]
RESULT = fields(anthropic.ToolResultBlockParam)["content"]
VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    ("chat", "parts"): variants(USER | ASSISTANT),
    ("messages", "parts"): variants(anthropic.ContentBlockParam | RESULT),
    ("responses", "items"): variants(fields(ResponseCreateParamsBase)["input"]),
    **{
        (protocol, place): variants(fields(PARAMS[protocol])[name])
        for protocol in ("chat", "responses", "messages")
        for place, name in (("tools", "tools"), ("choices", "tool_choice"))
    },
}
CLASSES = {"read", "inert", "noted", "refused"}


@pytest.fixture
def outcome(facts: ServerInfo, prompts: Prompts, spelling: Spelling) -> Any:
    """outcome(protocol, body) -> all that a body decides. Raises ApiError."""

    def decided(protocol: str, body: dict[str, Any]) -> tuple[Any, ...]:
        ask: ParsedRequest
        if protocol == "completions":
            ask = completions.read({"seed": 1, **body}, facts, spelling)
        else:
            ask = {"chat": chat, "responses": responses, "messages": messages}[protocol].read(
                {"seed": 1, **body}, facts
            )
        shown = "" if ask.conversation is None else spelling.decode(prompts.encode(ask.conversation))
        stops = ask.parsing.stop_sequences
        return (ask.model, ask.stream, ask.thinking, ask.sampling, ask.max_tokens, ask.rule, ask.prompt,
                shown, ask.prompt_text, ask.logprobs, ask.usage, tuple(stops))  # fmt: skip

    return decided


@pytest.mark.parametrize("protocol", PARAMS)
def test_every_field_is_classed(protocol: str) -> None:
    table = specification()[protocol]["fields"]
    assert fields(PARAMS[protocol]).keys() <= table.keys() and set(table.values()) <= CLASSES


@pytest.mark.parametrize(("protocol", "place"), VARIANTS)
def test_every_variant_is_classed(protocol: str, place: str) -> None:
    found = VARIANTS[protocol, place]
    assert len(found) >= 2 and found.keys() <= specification()[protocol][place].keys()


FIELDS = [(protocol, name) for protocol in PARAMS for name in specification()[protocol]["fields"]]


@pytest.mark.parametrize(("protocol", "name"), FIELDS)
def test_a_field_is_treated_as_it_is_classed(protocol: str, name: str, outcome: Any) -> None:
    kind, base = specification()[protocol]["fields"][name], BASE[protocol]
    value = OTHER.get(name, {"a": "b"}) if kind == "read" else {"a": "b"}
    if kind == "inert" and name in ("user", "prompt_cache_key", "safety_identifier", "service_tier"):
        value = "b"
    if (protocol, name) == ("chat", "logprobs"):
        value = True
    if (protocol, name) == ("responses", "top_logprobs"):
        base = {**base, "include": OTHER["include"]}
    if (protocol, name) == ("messages", "tool_choice"):
        value = {"type": "none"}
    if (protocol, name) in (("chat", "functions"), ("chat", "function_call")):
        base = {"messages": HI, "functions": [{"name": "f"}]}
    if (protocol, name) == ("completions", "echo"):
        assert outcome(protocol, {**base, name: True})[8] == "hi"
    body = {**base, name: value}
    if kind == "refused":
        with pytest.raises(ApiError) as refused:
            notices(protocol, body)
        assert refused.value.status == 400 and refused.value.param == name
    elif kind == "noted":
        assert any(said.startswith(f"{name} ") for said in notices(protocol, body))
        assert outcome(protocol, body) == outcome(protocol, base)
    elif kind == "inert":
        assert not notices(protocol, body) and outcome(protocol, body) == outcome(protocol, base)
    else:
        assert name in OTHER, "how is it seen that this field counts?"
        try:
            assert outcome(protocol, body) != outcome(protocol, base)
        except ApiError as error:
            assert error.status == 400 and name in (error.param, error.message.split(" ")[0].rstrip(":"))


@pytest.mark.parametrize("protocol", PARAMS)
def test_a_field_outside_the_specification_is_named(protocol: str, outcome: Any) -> None:
    body = {**BASE[protocol], "frobnicate": 3}
    assert notices(protocol, body) == ("frobnicate is not in the specification",)
    assert outcome(protocol, body) == outcome(protocol, BASE[protocol])


INNER = [
    (protocol, place, name)
    for protocol in PARAMS
    for place, found in specification()[protocol]["inner"].items()
    for name in sorted(found.keys() - {"type"})
]


def test_every_field_of_an_inner_object_is_classed() -> None:
    walked = 0
    for protocol, kind in PARAMS.items():
        for place, table in specification()[protocol]["inner"].items():
            for one in flat(fields(kind)[place]):
                said = next(iter(variants(one)), "")
                if place == "tools" and specification()[protocol]["tools"].get(said or "custom") != "read":
                    continue
                found = fields(one)
                if place == "tools" and said in found:
                    found = fields(next(flat(found[said])))
                walked += len(found)
                assert found.keys() <= table.keys(), (protocol, place, one)
    assert walked > 60


@pytest.mark.parametrize(("protocol", "place", "name"), INNER)
def test_an_inner_field_is_treated_as_it_is_classed(
    protocol: str, place: str, name: str, outcome: Any
) -> None:
    treated = specification()[protocol]["inner"][place][name]
    base = {**BASE[protocol], "functions": [{"name": "g"}]} if place == "functions" else BASE[protocol]
    given = base.get(place, {})
    inner = dict(given[0] if isinstance(given, list) else given)
    value = {"summary": "concise", "verbosity": "low", "tools": []}.get(name, "b")
    if place == "tools" and protocol == "chat":
        inner = {"type": "function", "function": {**inner["function"], name: value}}
    else:
        inner[name] = value
    body = {**base, place: [inner] if isinstance(given, list) else inner}
    if treated == "refused":
        with pytest.raises(ApiError, match=f"{place}.{name}"):
            notices(protocol, body)
        return
    said = notices(protocol, body)
    assert said == ((f"{place}.{name} has no effect here",) if treated == "noted" else ())
    if treated != "read":
        assert outcome(protocol, body) == outcome(protocol, base)


WORDS = (f"w{i}w" for i in itertools.count())
# Fields inside of a variant that change no answer: what they say is of ids, states, caches, looks, or for
# their maker alone.
ASIDE = {
    "type", "id", "call_id", "status", "role", "cache_control", "prompt_cache_breakpoint", "citations",
    "caller", "phase", "signature", "encrypted_content", "fingerprint", "container_id", "server_label",
    "media_type", "tool_use_id", "toolset_name", "is_error", "approval_request_id", "image_url",
    "transformations", "async", "namespace", "logprobs", "annotations", "acknowledged_safety_checks",
    "max_output_length", "detail", "file_id", "summary", "result", "error", "stderr_truncated",
    "execution", "environment", "data", "error_code", "url", "tool_name", "reasoning",
}  # fmt: skip


def sample(hint: Any, name: str, words: list[str]) -> Any:
    """A value of a type; `words` gets every text in it that the model must read."""
    origin = get_origin(hint)
    if origin in (Required, NotRequired, Annotated):
        return sample(get_args(hint)[0], name, words)
    if is_typeddict(hint):
        return {
            key: sample(one, key if name not in ASIDE else name, words) for key, one in fields(hint).items()
        }
    if origin is Literal:
        return get_args(hint)[0]
    if origin is Union or type(hint).__name__ == "UnionType":
        kinds = [one for one in get_args(hint) if one is not type(None)]
        return sample(next((one for one in kinds if is_typeddict(one)), kinds[0]), name, words)
    if (
        origin is not None
        and get_args(hint)
        and "dict" not in str(origin).lower()
        and "Mapping" not in str(hint)
    ):
        return [sample(get_args(hint)[0], name, words)]
    if hint is str:
        word = next(WORDS)
        if name not in ASIDE:
            words.append(word)
        return json.dumps({"a": word}) if name == "arguments" else word
    return {bool: True, int: 1, float: 1.0}.get(hint, {})


ITEMS = list(VARIANTS["responses", "items"].items())


@pytest.mark.parametrize(("kind", "type_"), ITEMS, ids=[name for name, _ in ITEMS])
def test_an_item_is_read_whole_or_refused_by_name(kind: str, type_: Any, outcome: Any) -> None:
    words: list[str] = []
    item = {name: sample(hint, name, words) for name, hint in fields(type_).items() if name != "error"}
    item["type"] = kind
    if kind == "message":
        item = {"type": kind, "role": "user", "content": [{"type": "input_text", "text": words[0]}]}
        words = words[:1]
    if kind == "reasoning":
        item["content"] = [{"type": "reasoning_text", "text": "thought"}]
        words = []  # only thinking of a turn that calls tools is kept: test_requests.py
    if kind == "image_generation_call":
        words = [item["revised_prompt"]] if "revised_prompt" in item else []
    if kind == "function_call_output":
        words.remove(item.pop("name"))  # the call says it
    if kind == "tool_search_output":
        item["tools"], words = [{"type": "function", "name": "words"}], ["words"]
    if kind == "computer_call_output":
        words = ["[Unsupported Image]"]
    body = {"input": [{"role": "user", "content": "hi"}, *_opened(item), item]}
    if specification()["responses"]["items"][kind] == "refused":
        with pytest.raises(ApiError) as refused:
            outcome("responses", body)
        assert refused.value.status == 400 and kind in refused.value.message
        return
    shown = outcome("responses", body)[7]
    assert not [word for word in words if word not in shown], shown


def _opened(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The call that an output answers."""
    if not str(item["type"]).endswith("_output"):
        return []
    item.setdefault("call_id", item.get("id"))
    return [{"type": "function_call", "call_id": item["call_id"], "name": "f", "arguments": "{}"}]


BLOCKS = list(VARIANTS["messages", "parts"].items())


@pytest.mark.parametrize(("kind", "type_"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_block_is_read_whole_or_refused_by_name(kind: str, type_: Any, outcome: Any) -> None:
    words: list[str] = []
    block = {name: sample(hint, name, words) for name, hint in fields(type_).items()}
    block["type"] = kind
    if kind == "document":
        block["source"] = {"type": "text", "media_type": "text/plain", "data": "w_w"}
        words = [block["title"], block["context"], "w_w"]
    role = "assistant" if "tool" in kind or "thinking" in kind else "user"
    if kind == "tool_reference":
        words = []  # of a tool that must be there
        block["tool_name"] = "f"
    content: list[Any] = [block]
    if kind == "tool_result" or kind in variants(RESULT) and kind not in ("text", "image"):
        inside = block if kind == "tool_result" else {"type": "tool_result", "content": content}
        inside["tool_use_id"], role = "call", "user"
        if kind == "tool_result":
            inside["content"], words = [{"type": "text", "text": "w_w"}], ["w_w"]
        content = [inside]
    history: list[Any] = [*HI]
    if content[0]["type"] == "tool_result":
        call = {"type": "tool_use", "id": "call", "name": "f", "input": {}}
        history.append({"role": "assistant", "content": [call]})
    elif kind.endswith("_tool_result"):
        content.insert(0, {"type": "server_tool_use", "id": block["tool_use_id"], "name": "f", "input": {}})
    if kind in ("tool_use", "server_tool_use"):
        block["input"], block["name"] = {"a": "w_w"}, "f"
        words = ["w_w"]
    body = {**BASE["messages"], "messages": [*history, {"role": role, "content": content}, *HI]}
    treated = specification()["messages"]["parts"][kind]
    if treated == "refused":
        with pytest.raises(ApiError) as refused:
            outcome("messages", body)
        assert refused.value.status == 400 and kind in refused.value.message
        return
    shown = outcome("messages", body)[7]
    if treated == "noted":
        assert "[Unsupported Image]" in shown and notices("messages", body)
    elif treated == "read" and "thinking" not in kind:
        assert not [word for word in words if word not in shown], shown


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [(p, kind) for p in ("chat", "responses", "messages") for kind in [*specification()[p]["tools"], "frob"]],
)
def test_a_kind_of_tool_is_offered_or_named(protocol: str, kind: str, outcome: Any) -> None:
    schema = {"function": "parameters", "namespace": "parameters"} if protocol != "messages" else {}
    inner = {"name": "g", schema.get(kind, "input_schema"): FUNCTION} if kind != "custom" else {"name": "g"}
    tool: dict[str, Any] = {"type": kind, **({kind: inner} if protocol == "chat" else inner)}
    if kind == "namespace":
        tool = {"type": kind, "name": "s", "tools": [{"type": "function", **inner}]}
    body = {**BASE[protocol], "tools": [tool]}
    treated = specification()[protocol]["tools"].get(kind)
    if treated is None:
        with pytest.raises(ApiError, match="frob"):
            notices(protocol, body)
        return
    assert (notices(protocol, body) != ()) == (treated == "noted")
    assert ("g" in str(outcome(protocol, body)[5])) == (treated == "read")


@pytest.mark.parametrize("kind", specification()["responses"]["choices"])
def test_a_choice_is_followed_or_refused(kind: str, outcome: Any) -> None:
    choice = {"type": kind, "name": "f", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    body = {**BASE["responses"], "tool_choice": choice}
    if specification()["responses"]["choices"][kind] == "refused":
        with pytest.raises(ApiError, match=kind):
            notices("responses", body)
    else:
        assert notices("responses", body) == () and outcome("responses", body)[5].required
