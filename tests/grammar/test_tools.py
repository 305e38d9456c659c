"""Blocks of tool calls: what a model says under the grammar parses back, with arguments of the schema.

The parser is the vendor's (deepseek-recipe), over the same tokens.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from deepseek_recipe import (
    AssistantMessage,
    ChatCompletionRequest,
    Conversation,
    ConversionOptions,
    DeepseekV4Encoding,
    InferenceChunk,
    InferenceFinishReason,
    ModelVersion,
    StreamProcessor,
    SystemMessage,
    ToolCall,
    ToolDefinition,
    UserMessage,
)
from grammar.scripted_model import Speaker, may_say
from jsonschema import Draft202012Validator

from dsv4_mlx.errors import InputError
from dsv4_mlx.grammar.rules import Json, Regex, ToolCalls

M = "｜DSML｜"

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "unit": {"enum": ["C", "CF", "C</x"]},
            },
            "required": ["city", "days", "unit"],
            "additionalProperties": False,
        },
    },
    "plan": {
        "strict": True,
        "parameters": {
            "$defs": {
                "Step": {
                    "type": "object",
                    "properties": {
                        "text": {"type": "string", "maxLength": 9},
                        "then": {"anyOf": [{"$ref": "#/$defs/Step"}, {"type": "null"}]},
                    },
                }
            },
            "type": "object",
            "properties": {
                "first": {"$ref": "#/$defs/Step"},
                "when": {"type": "string", "format": "date"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"type": "string", "minLength": 2, "maxLength": 4},
                "tags": {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^[a-z]{1,3}$"},
                    "maxItems": 2,
                },
                "size": {"type": ["string", "number"]},
                "again": {"$ref": "#/properties/tags"},
            },
        },
    },
    "ping": {"strict": True, "parameters": {"type": "object", "properties": {}}},
    "search": {
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["query"],
        }
    },
    "anything": {},
    "get": {"parameters": {"type": "object", "properties": {"getX": {}}, "additionalProperties": True}},
}


def listed(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, **TOOLS[name]}} for name in names or TOOLS]


def rule(*names: str, **options: Any) -> ToolCalls:
    return ToolCalls(json.dumps(listed(*names)), **options)


def parsed(speaker: Speaker, tokens: list[int], thinking: bool = False) -> tuple[str, list[tuple[str, Any]]]:
    """What the vendor's parser makes of an answer: its text and the calls with their arguments."""
    loose = [{"type": "function", "function": {"name": name}} for name in TOOLS]
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "?"}],
        "tools": loose,
        "thinking": {"type": "enabled" if thinking else "disabled"},
    }
    options = ConversionOptions().with_model_alias("m", ModelVersion.DeepseekV4Pro)
    request = ChatCompletionRequest(body).convert(options)
    generator = ChatCompletionRequest.chunk_generator(request, "i", "m")
    stream = StreamProcessor(generator, request.parsing_options, speaker.prompts.tokenizer)
    chunks = [*stream.push(InferenceChunk.ready())]
    for token in tokens:
        chunks += stream.push(InferenceChunk.tokens([token]))
    if not stream.finished:
        chunks += stream.push(InferenceChunk.finish(InferenceFinishReason.Stop))
        chunks += stream.finish()
    text = ""
    calls: dict[int, tuple[str, str]] = {}
    for chunk in chunks:
        for choice in json.loads(chunk.to_json())["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                name, arguments = calls.get(call["index"], ("", ""))
                function = call["function"]
                calls[call["index"]] = (
                    name + (function.get("name") or ""),
                    arguments + (function.get("arguments") or ""),
                )
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()]


def check(name: str, arguments: Any) -> None:
    """Strict arguments are what the schema says; others have the names it lists."""
    tool = TOOLS[name]
    schema = tool.get("parameters", {})
    if tool.get("strict"):
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(arguments)
        assert set(arguments) == set(schema["properties"])
    elif name == "search":
        assert set(arguments) <= set(schema["properties"])


@pytest.mark.parametrize("name", [*TOOLS, None])
def test_forced_calls_parse_back(speaker: Speaker, name: str | None) -> None:
    said = set()
    for seed in range(12 if name is None else 5):
        constraint = speaker.grammars.constraint(rule(required=True, name=name), thinking=False)
        tokens, ended = speaker.says(constraint, seed, 9000)  # free text may be long
        assert ended
        text, calls = parsed(speaker, tokens)
        assert text == "" and calls
        for called, arguments in calls:
            assert name in (None, called)
            check(called, arguments)
            said.add(called)
    assert name is not None or len(said) >= 4


def block(*calls: str) -> str:
    return f"\n\n<{M}tool_calls>\n" + "\n".join(calls) + f"\n</{M}tool_calls>"


def call(name: str, *parameters: tuple[str, str, str]) -> str:
    inner = "\n".join(
        f'<{M}parameter name="{key}" string="{string}">{value}</{M}parameter>'
        for key, string, value in parameters
    )
    return f'<{M}invoke name="{name}">\n{inner}\n</{M}invoke>'


GOOD = call("get_weather", ("days", "false", "3"), ("city", "true", "Köln </b> <"), ("unit", "true", "C</x"))

CASES: list[tuple[str, bool]] = [
    (block(GOOD), True),
    (block(GOOD, call("ping"), GOOD), True),
    (block(call("ping")), True),
    (block(call("anything")), True),
    (block(call("anything", ("a", "true", ""), ("b", "false", '{"x": [1]}'))), True),
    (block(call("search", ("limit", "true", "ten"), ("query", "true", "q"))), True),
    (block(call("get", ("free", "false", "null"), ("getX", "false", '"s"'))), True),
    ("", False),
    ("text", False),
    (block(), False),
    (block(GOOD).strip(), False),
    (block(GOOD) + "\n", False),
    (block(call("nope")), False),
    (block(call("ping", ("a", "true", "b"))), False),
    (block(call("search", ("query", "true", "q"), ("query", "true", "q"))), False),
    (block(call("search", ("other", "true", "q"))), False),
    (block(call("search", ("limit", "false", "ten"))), False),
    (block(call("get_weather", ("city", "true", "x"), ("days", "false", "3"))), False),
    (block(GOOD.replace(">3<", ">15<")), False),
    (block(GOOD.replace(">3<", "> 3<")), False),
    (block(GOOD.replace('string="false"', 'string="true"')), False),
    (block(GOOD.replace("C</x", "F")), False),
    (block(call("anything", ('a"b', "true", ""))), False),
    (block(call("anything", ("a\\", "true", ""))), False),
    (block(GOOD).replace("tool_calls", "toolcalls"), False),
    (f"\n\n<{M}tool_calls>\n{GOOD}", False),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_what_may_be_said(speaker: Speaker, case: int) -> None:
    text, allowed = CASES[case]
    constraint = speaker.grammars.constraint(rule(required=True), thinking=False)
    assert may_say(constraint, speaker.ids(text), speaker.end) == allowed, text


def test_the_vendors_rendering_may_be_said(speaker: Speaker) -> None:
    """What the model was trained to say: the block that the vendor's encoder writes for such calls."""
    arguments = {"query": 'a "b" \\ \n <c', "limit": 7}
    calls = [ToolCall("1", "search", json.dumps(arguments)), ToolCall("2", "anything", "{}")]
    tools = [ToolDefinition(name, None, TOOLS[name].get("parameters")) for name in ("search", "anything")]
    talk = [UserMessage("?"), AssistantMessage("", tool_calls=calls)]
    conversation = Conversation([SystemMessage("", tools=tools), *talk], thinking_mode=False)
    rendered = DeepseekV4Encoding().with_tokenizer(speaker.prompts.tokenizer).encode(conversation)
    start = rendered.index(speaker.prompts.markers.end_think) + 1
    said = rendered[start : rendered.index(speaker.end)]
    constraint = speaker.grammars.constraint(rule("search", "anything", required=True), thinking=False)
    assert may_say(constraint, said, speaker.end)
    assert parsed(speaker, said)[1] == [("search", arguments), ("anything", {})]


def test_one_call_where_only_one_may_be(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(rule(required=True, parallel=False), thinking=False)
    assert may_say(constraint, speaker.ids(block(GOOD)), speaker.end)
    assert not may_say(constraint, speaker.ids(block(GOOD, GOOD)), speaker.end)


def test_calls_may_follow_text(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(rule(), thinking=False)
    for text in ("", "Hello < there", "a" + block(GOOD), block(call("ping"))):
        assert may_say(constraint, speaker.ids(text), speaker.end), text
    for text in (f"see {M}", "a" + block(GOOD).replace("tool_calls", "toolcalls"), block(GOOD) + "more"):
        assert not may_say(constraint, speaker.ids(text), speaker.end), text
    calls = 0
    for seed in range(10):
        tokens, ended = speaker.says(speaker.grammars.constraint(rule(), thinking=False), seed)
        tokens += speaker.ids(f"<{M}")  # where it may always begin
        constraint = speaker.grammars.constraint(rule(), thinking=False)
        for token in tokens:
            constraint.accept(token)
        assert ended and not constraint.finished
        rest, ended = speaker.says(constraint, seed)
        assert ended and constraint.finished
        for called, arguments in parsed(speaker, tokens + rest)[1]:
            check(called, arguments)
            calls += 1
    assert calls >= 10


def test_calls_or_an_answer_of_its_own_form(speaker: Speaker) -> None:
    answer = Json(json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}))
    for content, yes, no in ((answer, '{"a": 1}', '{"a": "x"}'), (Regex("[0-9]+/[a-f]"), "12/a", "12/g")):
        constraint = speaker.grammars.constraint(rule(content=content), thinking=False)
        assert may_say(constraint, speaker.ids(yes), speaker.end)
        assert may_say(constraint, speaker.ids(block(GOOD)), speaker.end)
        for text in (no, "", "text", yes + block(GOOD)):
            assert not may_say(constraint, speaker.ids(text), speaker.end), text


def test_many_tools(speaker: Speaker) -> None:
    """As many as a large agent has: compiled in time, and one of them can be called."""
    parameters = {
        "type": "object",
        "properties": {f"argument_{i}": {"type": "string", "description": "x" * 80} for i in range(12)},
    }
    tools = [
        {
            "type": "function",
            "function": {"name": f"tool_{i}", "strict": i % 2 == 0, "parameters": parameters},
        }
        for i in range(150)
    ]
    every = ToolCalls(json.dumps(tools), required=True)
    constraint = speaker.grammars.constraint(every, thinking=False)
    said = call("tool_149", ("argument_3", "true", "x"))
    assert may_say(constraint, speaker.ids(block(said)), speaker.end)
    all_of_it = call("tool_148", *((f"argument_{i}", "true", "x") for i in reversed(range(12))))
    assert may_say(constraint, speaker.ids(block(all_of_it)), speaker.end)


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def strict(parameters: Any) -> dict[str, Any]:
    return tool(strict=True, parameters=parameters)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("", "not JSON"),
        ("{}", "no list"),
        ([], "there are 0 tools"),
        ([1], "has the name None"),
        ([tool("")], "has the name ''"),
        ([tool('f">')], "has the name"),
        ([tool("f"), tool("f")], "two tools"),
        ([strict({"type": "object", "properties": {'a"': {}}})], "can't be said"),
        ([strict({"type": "object", "properties": {"": {}}})], "can't be said"),
        ([strict({"type": "array"})], "expected an object"),
        ([strict({"anyOf": [{"type": "object"}]})], "expected an object"),
        ([strict({"type": "object", "properties": {"a": {"not": {}}}})], "'not'"),
        ([strict({"type": "object", "properties": {f"a{i}": {} for i in range(61)}})], "at most 60"),
        (
            [strict({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}})],
            "enforced",
        ),
        ([strict({"type": "object", "properties": {"a": {"$ref": "#"}}})], "can end"),
        ([strict([])], "is no schema"),
    ],
)
def test_tools_that_are_refused(speaker: Speaker, tools: Any, message: str) -> None:
    text = tools if isinstance(tools, str) else json.dumps(tools)
    with pytest.raises(InputError, match=message):
        speaker.grammars.constraint(ToolCalls(text, required=True), thinking=False)


def test_a_tool_that_is_not_there_can_not_be_named(speaker: Speaker) -> None:
    with pytest.raises(InputError, match="no tool 'other'"):
        speaker.grammars.constraint(rule(required=True, name="other"), thinking=False)


@pytest.mark.parametrize(
    "parameters", [None, [], {"properties": 3}, {"not": {}}, {"type": "object", "properties": {'"': {}}}]
)
def test_odd_schemas_do_not_matter_where_they_are_not_strict(speaker: Speaker, parameters: Any) -> None:
    every = ToolCalls(json.dumps([tool(parameters=parameters)]), required=True)
    constraint = speaker.grammars.constraint(every, thinking=False)
    assert may_say(constraint, speaker.ids(block(call("f"))), speaker.end)
