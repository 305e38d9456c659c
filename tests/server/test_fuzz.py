"""Any cut of the model's bytes into tokens, any moment of an end: the same message, and no markup in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server.fakes import CHECKPOINT, PlainTurns
from server.sse import Cutter, Read, Turn, read_chat, read_messages, read_responses

from dsv4_mlx.engine.decode import Token
from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.server.protocols.request import ParsedRequest, ProtocolName, ServerInfo
from dsv4_mlx.server.protocols.stream import StreamEncoder
from dsv4_mlx.server.translate import ENCODERS, Translator
from dsv4_mlx.tokenizer.template import Prompts, Spelling

# Text that looks like markup, halves of it, and characters of several bytes.
TRICKY = (
    "<", "</", "<｜DSML｜", "</｜DSML｜parameter>", "</think>", "<think>", "｜", "\n\n", "😀", "é", '"', "\\",
    "tool_calls>", "<｜end▁of▁sentence｜>", "{", "\u2028", "\x00", "\ue000",
)  # fmt: skip
TEXT = st.lists(
    st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6
)
PLAIN = TEXT.map(lambda parts: "".join(parts).strip())
VALUE = (
    TEXT.map("".join)
    | st.integers(-1000, 1000)
    | st.booleans()
    | st.none()
    | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=3)
)
ARGUMENTS = st.dictionaries(st.sampled_from(["path", "text", "n", "x-y", "été"]), VALUE, max_size=4)
CALLS = st.lists(st.tuples(st.sampled_from(["read", "write_file"]), ARGUMENTS), max_size=3)
TURNS = st.builds(lambda r, c, k: Turn(r, c, tuple(k)), PLAIN.filter(bool), PLAIN, CALLS)
CUTS = st.lists(st.integers(0, 11), max_size=20)
PROTOCOL = st.sampled_from(["chat", "messages", "responses"])
READERS: dict[str, Callable[[str], Read]] = {
    "chat": read_chat, "messages": read_messages, "responses": read_responses
}  # fmt: skip


@pytest.fixture(scope="module")
def translator(prompts: Prompts, spelling: Spelling, grammars: Grammars) -> Translator:
    from dsv4_mlx.server.options import ServerOptions

    facts = ServerInfo(ServerOptions(), "m", prompts.levels, 1792, 1 << 20, 1 << 20)
    return Translator(facts, spelling, grammars, PlainTurns(prompts))


@pytest.fixture(scope="module")
def cutter(spelling: Spelling) -> Cutter:
    return Cutter(spelling)


@cache
def asked(translator: Translator, protocol: ProtocolName, *, stream: bool) -> ParsedRequest:
    """A request with two tools."""
    names, schema = ("read", "write_file"), {"type": "object"}
    body: dict[str, Any] = {"stream": stream}
    if protocol == "chat":
        body["messages"] = [{"role": "user", "content": "q"}]
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": schema}} for name in names
        ]
    elif protocol == "messages":
        body |= {"messages": [{"role": "user", "content": "q"}], "max_tokens": 100}
        body["tools"] = [{"name": name, "input_schema": schema} for name in names]
    else:
        body |= {
            "input": "q",
            "tools": [{"type": "function", "name": name, "parameters": schema} for name in names],
        }
    return translator.read(protocol, json.dumps(body).encode())


def run(encoder: StreamEncoder, ids: list[int], *, length: bool = False) -> str:
    frames = [*encoder.open(0), *encoder.started(0)]
    for id in ids:
        frames += encoder.token(Token(id))
    return "".join([*frames, *encoder.finish(length=length)])


def check_same(
    translator: Translator, cutter: Cutter, protocol: ProtocolName, turn: Turn, cuts: list[int]
) -> None:
    ids = cutter.ids(turn.segments(translator.spelling), cuts)
    encoder = ENCODERS[protocol](asked(translator, protocol, stream=True), "h", 5, translator.spelling)
    read = READERS[protocol](run(encoder, ids))
    plain = ENCODERS[protocol](asked(translator, protocol, stream=False), "h", 5, translator.spelling)
    run(plain, ids)
    for said in (encoder.completion(), plain.completion()):
        calls = tuple((call.name, json.loads(call.arguments)) for call in said.calls)
        assert (said.reasoning, trimmed(said.content, turn), calls) == (
            turn.reasoning,
            turn.content,
            turn.calls,
        )
    assert (read.reasoning, trimmed(read.content, turn)) == (turn.reasoning, turn.content)
    assert tuple(read.parsed()) == turn.calls
    usual = {"chat": "stop", "messages": "end_turn", "responses": "completed"}
    calling = {"chat": "tool_calls", "messages": "tool_use", "responses": "completed"}
    assert read.end == (calling if turn.calls else usual)[protocol]
    assert "\ue000" not in json.dumps(plain.answer()).replace("\\ue000", "", turn_marks(turn))


def trimmed(content: str, turn: Turn) -> str:
    """After a "<" the library leaves one of the two newlines before a block of calls in the text."""
    return content.removesuffix("\n") if turn.calls and turn.content.endswith("<") else content


def turn_marks(turn: Turn) -> int:
    """How often the text itself holds the first character of the private spelling."""
    return json.dumps([turn.reasoning, turn.content, turn.calls]).count("\\ue000")


def check_cut_off(
    translator: Translator,
    cutter: Cutter,
    protocol: ProtocolName,
    turn: Turn,
    cuts: list[int],
    at: float,
    length: bool,
) -> None:
    ids = cutter.ids(turn.segments(translator.spelling), cuts)
    kept = ids[: int(at * len(ids))]
    encoder = ENCODERS[protocol](asked(translator, protocol, stream=True), "h", 5, translator.spelling)
    read = READERS[protocol](run(encoder, kept, length=length))
    assert turn.reasoning.startswith(read.reasoning.rstrip("\ufffd"))
    thought = turn.reasoning.startswith(read.content.rstrip("\ufffd"))  # thinking that never ended is shown
    content = trimmed(read.content, turn).rstrip("\ufffd")
    # Before the marker itself, what opens a block of calls is text like any other.
    opening = turn.content + "\n\n<" if turn.calls else turn.content
    begun = opening.startswith(content) or opening.lstrip("\n").startswith(content.lstrip("\n"))
    assert begun or (thought and not length)
    assert translator.spelling.markup not in json.dumps(read.__dict__, ensure_ascii=False)
    for (name, arguments), (expected, values) in zip(read.calls or [], turn.calls, strict=False):
        assert expected == name
        whole = _arguments_text(values)
        unclosed = arguments.removesuffix('"').rstrip("\ufffd")  # the library closes a string that is cut off
        assert whole.startswith((arguments, unclosed)) or json.loads(arguments) == values
    answer = json.dumps(encoder.answer(), ensure_ascii=False)
    assert translator.spelling.markup not in answer
    if encoder.unfinished:
        assert read.end in ("length", "max_tokens", "incomplete")


def _arguments_text(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


@settings(max_examples=500)
@given(PROTOCOL, TURNS, CUTS)
def test_same_message_however_cut(
    translator: Translator, cutter: Cutter, protocol: ProtocolName, turn: Turn, cuts: list[int]
) -> None:
    check_same(translator, cutter, protocol, turn, cuts)


@settings(max_examples=500)
@given(PROTOCOL, TURNS, CUTS, st.floats(0, 1), st.booleans())
def test_cut_off_anywhere(
    translator: Translator,
    cutter: Cutter,
    protocol: ProtocolName,
    turn: Turn,
    cuts: list[int],
    at: float,
    length: bool,
) -> None:
    check_cut_off(translator, cutter, protocol, turn, cuts, at, length)


@pytest.mark.long
@settings(max_examples=5000)
@given(PROTOCOL, TURNS, CUTS)
def test_same_message_however_cut_long(
    translator: Translator, cutter: Cutter, protocol: ProtocolName, turn: Turn, cuts: list[int]
) -> None:
    check_same(translator, cutter, protocol, turn, cuts)


@pytest.mark.long
@settings(max_examples=5000)
@given(PROTOCOL, TURNS, CUTS, st.floats(0, 1), st.booleans())
def test_cut_off_anywhere_long(
    translator: Translator,
    cutter: Cutter,
    protocol: ProtocolName,
    turn: Turn,
    cuts: list[int],
    at: float,
    length: bool,
) -> None:
    check_cut_off(translator, cutter, protocol, turn, cuts, at, length)


def test_the_checkpoint_has_the_markers(spelling: Spelling) -> None:
    assert spelling.dsml >= 0 and spelling.end_think >= 0 and CHECKPOINT.is_dir()
