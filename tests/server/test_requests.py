"""Bodies of real clients and odd ones -> what is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsv4_mlx.grammar.rules import Json, Regex, ToolCalls
from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols import chat, messages, responses
from dsv4_mlx.server.protocols.options import resolve
from dsv4_mlx.server.protocols.request import ParsedRequest, ServerInfo
from dsv4_mlx.tokenizer.template import LEVELS, Prompts, Spelling, Think

HI = [{"role": "user", "content": "hi"}]
F = {"type": "function", "function": {"name": "f"}}


def text_of(ask: ParsedRequest, prompts: Prompts, spelling: Spelling) -> str:
    assert ask.conversation is not None
    return spelling.decode(prompts.encode(ask.conversation))


@pytest.fixture
def render(facts: ServerInfo, prompts: Prompts, spelling: Spelling) -> Any:
    def rendered(module: Any, body: dict[str, Any]) -> str:
        return text_of(module.read(body, facts), prompts, spelling)

    return rendered


@pytest.mark.parametrize(
    ("body", "level"),
    [
        ({}, "high"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "medium"}, "high"),
        ({"reasoning_effort": "xhigh"}, "high"),
        ({"reasoning_effort": "max"}, "max"),
        ({"reasoning_effort": "none"}, None),
        ({"reasoning": {"effort": "max"}}, "max"),
        ({"output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "max"}, None),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, "high"),
        ({"thinking": {"type": "adaptive"}}, "high"),
        ({"thinking": False}, None),
        ({"enable_thinking": False}, None),
        ({"think": False}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None),
        ({"chat_template_kwargs": {"thinking": True, "reasoning_effort": "low"}}, "low"),
        ({"model": "deepseek-chat"}, None),
        ({"model": "deepseek-chat", "thinking": {"type": "enabled"}}, "high"),
        ({"model": "deepseek-reasoner"}, "high"),
    ],
)
def test_thinking_words(body: dict[str, Any], level: str | None) -> None:
    assert resolve(body, "on").level == level


@pytest.mark.parametrize(("default", "level"), [("off", None), ("on", "high"), ("max", "max")])
def test_thinking_default_is_the_servers(default: Think, level: str | None) -> None:
    assert resolve({}, default).level == level


@pytest.mark.parametrize(
    "body",
    [
        {"reasoning_effort": "lots"},
        {"reasoning_effort": 3},
        {"thinking": {"type": "maybe"}},
        {"thinking": "yes"},
    ],
)
def test_unknown_thinking_words_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        resolve(body, "on")
    assert refused.value.status == 400


def test_effort_text_is_what_the_checkpoint_was_trained_on(
    prompts: Prompts, spelling: Spelling, facts: ServerInfo
) -> None:
    """April: no text, then what 0731 calls high. 0731: no text for low, one for high, another for max."""
    said = {}
    for checkpoint in ("april", "0731"):
        mine = ServerInfo(facts.options, "m", LEVELS[checkpoint], facts.vocabulary, 4096, 4096)
        for level in ("low", "high", "max"):
            ask = chat.read({"messages": HI, "reasoning_effort": level}, mine)
            text = text_of(ask, prompts, spelling)
            said[checkpoint, level] = text[: text.index("<｜User｜>")].removeprefix("<｜begin▁of▁sentence｜>")
    assert said["april", "low"] == said["april", "high"] == said["0731", "low"] == ""
    assert said["april", "max"] == said["0731", "high"] != ""
    assert said["0731", "max"] not in ("", said["0731", "high"])


def test_budget_and_exclusion() -> None:
    found = resolve(
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "reasoning": {"exclude": True}}, "on"
    )
    assert (found.budget, found.shown) == (1024, False)


def test_developer_is_system(render: Any) -> None:
    spoken = [{"role": "developer", "content": "be brief"}, *HI]
    meant = [{"role": "system", "content": "be brief"}, *HI]
    assert render(chat, {"messages": spoken}) == render(chat, {"messages": meant})


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("arguments", ['{"a": 1}', '{"a":1}', {"a": 1}])
def test_a_call_renders_the_same_however_it_comes_back(render: Any, content: Any, arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    assistant = {"role": "assistant", "content": content, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "done"}]}
    text = render(chat, {"messages": [*HI, assistant, result], "tools": [F]})
    assert '<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>' in text
    assert text.endswith("<tool_result>done</tool_result><｜Assistant｜><think>")


def test_a_lost_result_is_empty(render: Any) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    text = render(chat, {"messages": [*HI, {"role": "assistant", "tool_calls": [call]}, *HI], "tools": [F]})
    assert "<tool_result></tool_result>" in text
    blocks = [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]
    body = {"messages": [*HI, {"role": "assistant", "content": blocks}, *HI], "tools": [{"name": "f"}]}
    assert "<tool_result></tool_result>" in render(messages, body)
    items = [
        {"role": "user", "content": "q"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    assert "<tool_result></tool_result>" in render(responses, {"input": items})


def test_missing_reasoning_is_no_error(render: Any) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    assert "<think></think>" in render(chat, {"messages": history, "tools": [F]})


def test_legacy_functions(render: Any) -> None:
    history = [
        *HI,
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "out"},
    ]
    assert "<tool_result>out</tool_result>" in render(
        chat, {"messages": history, "functions": [{"name": "f"}]}
    )


def test_prefix_completion(render: Any) -> None:
    body = {"messages": [*HI, {"role": "assistant", "content": "Once", "prefix": True}]}
    assert render(chat, body).endswith("<think></think>Once")
    assert render(chat, {**body, "thinking": {"type": "disabled"}}).endswith("<｜Assistant｜></think>Once")
    trailing = {"messages": [*HI, {"role": "assistant", "content": "Once"}], "max_tokens": 5}
    assert render(messages, trailing).endswith("<think></think>Once")


def test_billing_line_is_left_out(render: Any) -> None:
    """It differs from session to session, and would cost the whole cached prefix."""
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.123; cch=00;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
    ]
    text = render(messages, {"messages": HI, "max_tokens": 5, "system": system})
    assert "billing" not in text and "You are an agent." in text


def test_system_inside_messages(render: Any) -> None:
    body = {"messages": [*HI, {"role": "system", "content": "later"}], "max_tokens": 5}
    assert "later" in render(messages, body)


def test_vendor_tools_and_blocks_are_left_out(facts: ServerInfo, render: Any) -> None:
    tools = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "web_search_20250305", "name": "web_search"},
        {"name": "f"},
    ]
    body: dict[str, Any] = {"messages": HI, "max_tokens": 5, "tools": tools}
    assert [one["function"]["name"] for one in json.loads(messages.read(body, facts).tools.declared)] == ["f"]
    block = {"type": "redacted_thinking", "data": "x"}
    history = [*HI, {"role": "assistant", "content": [block, {"type": "text", "text": "t"}]}, *HI]
    assert "redacted" not in render(messages, {"messages": history, "max_tokens": 5})


def test_tool_schema_keeps_its_order(render: Any) -> None:
    schema = {"type": "object", "zz": 1, "properties": {"b": {"type": "string"}, "a": {"default": None}}}
    text = render(
        chat,
        {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
    )
    assert json.dumps(schema) in text


def test_images_become_a_remark(render: Any) -> None:
    """Never fetched, and no error: agents put screenshots into their history."""
    part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    text = render(chat, {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]})
    assert "[Unsupported Image]" in text and "passwd" not in text


@pytest.mark.parametrize(
    ("choice", "must"),
    [
        ("auto", None),
        ("required", ""),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}, ""),
    ],
)
def test_tool_choice(facts: ServerInfo, choice: Any, must: str | None) -> None:
    for thinking in ("enabled", "disabled"):
        body = {"messages": HI, "tools": [F], "tool_choice": choice, "thinking": {"type": thinking}}
        rule = chat.read(body, facts).rule
        assert isinstance(rule, ToolCalls)
        assert (rule.required, rule.name, rule.parallel) == (must is not None, must or None, True)


def test_tool_choice_none(facts: ServerInfo, render: Any) -> None:
    body = {"messages": HI, "tools": [F], "tool_choice": "none"}
    assert chat.read(body, facts).rule is None
    assert "## Tools" not in render(chat, body)


def test_tool_choice_in_other_protocols(facts: ServerInfo) -> None:
    tools = [{"name": "f"}]
    body = {"messages": HI, "max_tokens": 5, "tools": tools}
    any_ = messages.read({**body, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}, facts)
    assert (any_.tools.must, any_.tools.one) == ("", True)
    assert messages.read({**body, "tool_choice": {"type": "tool", "name": "f"}}, facts).tools.must == "f"
    flat = {"input": "x", "tools": [{"type": "function", "name": "f"}]}
    named = responses.read({**flat, "tool_choice": {"type": "function", "name": "f"}}, facts)
    assert named.tools.must == "f"
    assert responses.read({**flat, "parallel_tool_calls": False}, facts).tools.one


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tools": [F], "tool_choice": "sometimes"},
        {"tools": [F], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        {"tools": [{"type": "function", "function": {"name": 'a">b'}}]},
        {"tools": [{"type": "function", "function": {}}], "tool_choice": "auto"},
        {"tools": "f"},
        {"n": 2},
        {"temperature": 3},
        {"temperature": "1"},
        {"temperature": True},
        {"top_p": -1},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"stop": ["x"] * 17},
        {"stop": "x" * 257},
        {"stop": [1]},
        {"seed": "x"},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"99999": 1}},
        {"presence_penalty": 2.5},
        {"stream": "yes"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": "json"},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        {"messages": [{"role": "tool", "tool_call_id": "x", "content": "x"}]},
    ],
)
def test_what_cant_be_is_refused(facts: ServerInfo, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        chat.read({"messages": HI, **fields}, facts)
    assert refused.value.status == 400 and refused.value.message


def test_vendor_extras_are_ignored(facts: ServerInfo) -> None:
    extras = {
        "store": False, "metadata": {"a": 1}, "user": "u", "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "verbosity": "low", "prediction": {}, "modalities": ["text"], 
        "unknown": [1], "stream_options": {}, "parallel_tool_calls": True,
    }  # fmt: skip
    assert chat.read({"messages": HI, **extras}, facts).hint == "k"


def test_sampling(facts: ServerInfo) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "presence_penalty": 1,
        "frequency_penalty": -1, "seed": -1, "logit_bias": {"7": -100},
    }  # fmt: skip
    plain = chat.read({"messages": HI}, facts).sampling
    assert (plain.temperature, plain.top_p, plain.top_k, plain.min_p) == (1.0, 1.0, 0, 0.0)
    ours = chat.read({"messages": HI, **given}, facts).sampling
    assert (ours.temperature, ours.top_p, ours.top_k, ours.min_p) == (0.5, 0.5, 5, 0.1)
    assert (ours.presence_penalty, ours.frequency_penalty, ours.seed) == (1, -1, 2**63 - 1)
    assert ours.logit_bias == {7: -100}
    deepseek = ServerInfo(ServerOptions(sampling="deepseek"), "m", facts.levels, facts.vocabulary, 4096, 4096)
    thinking = chat.read({"messages": HI, **given}, deepseek).sampling
    assert (thinking.temperature, thinking.top_p, thinking.presence_penalty) == (1.0, 1.0, 0.0)
    assert thinking.seed == 2**63 - 1
    not_thinking = chat.read({"messages": HI, "reasoning_effort": "none", **given}, deepseek).sampling
    assert not_thinking.temperature == 0.5
    seeds = {chat.read({"messages": HI}, facts).sampling.seed for _ in range(5)}
    assert len(seeds) == 5


def test_max_tokens_is_the_least_given_and_never_too_much(facts: ServerInfo) -> None:
    both = {"max_tokens": 10**9, "max_completion_tokens": 7}
    assert chat.read({"messages": HI, **both}, facts).max_tokens == 7
    assert messages.read({"messages": HI, "max_tokens": 10**9}, facts).max_tokens == 10**9
    assert responses.read({"input": "x", "max_output_tokens": 10**9}, facts).max_tokens == 10**9
    assert chat.read({"messages": HI}, facts).max_tokens is None


def test_forms(facts: ServerInfo, render: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body: dict[str, Any] = {"messages": HI, "response_format": named}
    assert chat.read(body, facts).rule == Json(json.dumps(schema), strict=True)
    assert json.dumps(schema) in render(chat, body)
    loose = {"messages": HI, "response_format": {"type": "json_object"}}
    assert chat.read(loose, facts).rule == Json()
    regex = {"messages": HI, "response_format": {"type": "regex", "regex": "a+"}}
    assert chat.read(regex, facts).rule == Regex("a+")
    both = chat.read({**body, "tools": [F]}, facts).rule
    assert isinstance(both, ToolCalls) and both.content == Json(json.dumps(schema), strict=True)
    flat = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert responses.read({"input": "x", "text": flat}, facts).rule == Json(json.dumps(schema))
    form = {"format": {"type": "json_schema", "schema": schema}}
    for given in ({"output_config": form}, {"output_format": form["format"]}):
        for history in (HI, [*HI, {"role": "assistant", "content": "{"}]):
            body = {"messages": history, "max_tokens": 5, **given}
            assert messages.read(body, facts).rule == Json(json.dumps(schema), strict=True)
            assert json.dumps(schema) in render(messages, body)


def test_strict_and_other_tools_together(facts: ServerInfo) -> None:
    strict = {"name": "g", "strict": True, "parameters": {"type": "object", "properties": {}}}
    ask = chat.read({"messages": HI, "tools": [F, {"type": "function", "function": strict}]}, facts)
    declared = json.loads(ask.tools.declared)
    assert [one["function"].get("strict") for one in declared] == [None, True]
