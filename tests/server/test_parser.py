"""What the parser does where a model's turn is not as it should be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server.fakes import PlainTurns
from server.sse import read_chat, read_messages, read_responses

from dsv4_mlx.engine.decode import Token
from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.server.protocols.request import ServerInfo
from dsv4_mlx.server.protocols.stream import StreamEncoder
from dsv4_mlx.server.translate import ENCODERS, Translator
from dsv4_mlx.tokenizer.template import Prompts, Spelling

VALUE = '<｜DSML｜parameter name="p" string="true">ab</｜DSML｜parameter>'
CALL = f'<｜DSML｜invoke name="f">\n{VALUE}\n</｜DSML｜invoke>\n'
BLOCK = f"<｜DSML｜tool_calls>\n{CALL}</｜DSML｜tool_calls>"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def say(facts: ServerInfo, prompts: Prompts, spelling: Spelling, grammars: Grammars) -> Any:
    """say(text with markers, body fields) -> (encoder, what the stream said)."""
    translator = Translator(facts, spelling, grammars, PlainTurns(prompts))

    def run(
        text: str, *, length: bool = False, ids: list[int] | None = None, **body: Any
    ) -> tuple[StreamEncoder, Any]:
        body = {"messages": [{"role": "user", "content": "q"}], "stream": True, **body}
        encoder = ENCODERS["chat"](translator.read("chat", json.dumps(body).encode()), "h", 5, spelling)
        frames = [*encoder.open(0), *encoder.started(0)]
        for id in prompts.tokenizer.encode(text) if ids is None else ids:
            frames += encoder.token(Token(id))
        return encoder, read_chat("".join([*frames, *encoder.finish(length=length)]))

    return run


def test_thinking_that_never_ends_is_the_answer_too(say: Any) -> None:
    encoder, read = say("all of it thought")
    assert (read.reasoning, read.content, read.end) == ("all of it thought", "all of it thought", "stop")
    assert encoder.answer()["choices"][0]["message"]["content"] == "all of it thought"


def test_thinking_cut_off_by_a_limit_is_not_an_answer(say: Any) -> None:
    _, read = say("all of it thought", length=True)
    assert (read.content, read.end) == ("", "length")


def test_calls_inside_the_thinking_end_it(say: Any) -> None:
    _, read = say("hm" + BLOCK, tools=[TOOL])
    assert (read.reasoning, read.parsed(), read.end) == ("hm", [("f", {"p": "ab"})], "tool_calls")


# between the marker's first token and the end, but not inside a marker: it is one token
CUTS = [
    cut
    for cut in range(len("<｜DSML｜"), len(BLOCK))
    if not any(BLOCK[:cut].endswith("｜DSML｜"[:part]) for part in range(1, len("｜DSML｜")))
    or BLOCK[:cut].endswith("｜DSML｜")
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_call_that_is_cut_off_is_not_made_whole(say: Any, cut: int) -> None:
    encoder, read = say("hm</think>x\n\n" + BLOCK[:cut], tools=[TOOL])
    assert read.content == "x"
    whole = BLOCK[:cut].count("</｜DSML｜") >= 2
    message = encoder.answer()["choices"][0]["message"]
    if not encoder.unfinished and not read.calls:
        assert read.end == "stop"
    elif not whole:
        assert read.end == "length" and "tool_calls" not in message
        assert all(not set("｜<") & set(arguments) for _, arguments in read.calls)
    else:
        assert read.parsed() == [("f", {"p": "ab"})]


def test_calls_without_the_blocks_end_are_calls(say: Any) -> None:
    _, read = say("</think><｜DSML｜tool_calls>\n" + CALL, tools=[TOOL])
    assert (read.parsed(), read.end) == ([("f", {"p": "ab"})], "tool_calls")


def test_one_call_at_a_time(say: Any) -> None:
    two = f"<｜DSML｜tool_calls>\n{CALL}{CALL}</｜DSML｜tool_calls>"
    encoder, read = say("</think>" + two, tools=[TOOL], parallel_tool_calls=False)
    assert encoder.over and len(read.calls) == 1 and read.end == "tool_calls"
    assert len(say("</think>" + two, tools=[TOOL])[1].calls) == 2


def test_markup_of_tools_that_were_not_offered_ends_the_turn(say: Any) -> None:
    encoder, read = say("</think>some text\n\n" + BLOCK + "more")
    assert encoder.over and (read.content, read.calls, read.end) == ("some text", [], "stop")


@pytest.mark.parametrize("text", ["1 <", "1 <\n", "a\n\n", "x < y\n\nz", "<"])
def test_text_that_might_have_been_markup_is_not_lost(say: Any, text: str) -> None:
    assert say("</think>" + text)[1].content == text


def test_quoted_markup_is_text(say: Any, spelling: Spelling) -> None:
    """The same characters, sampled as ordinary tokens."""
    for tools in ([TOOL], []):
        ids = [spelling.end_think, *spelling.encode("see: " + BLOCK + " and </think>")]
        _, read = say("", ids=ids, tools=tools)
        assert (read.content, read.calls, read.end) == ("see: " + BLOCK + " and </think>", [], "stop")


def test_control_tokens_are_not_text(say: Any, prompts: Prompts) -> None:
    encoder, read = say("</think>a<｜User｜>b<｜end▁of▁sentence｜>c<｜fim▁hole｜>")
    assert read.content == "abc"
    assert encoder.answer()["usage"]["completion_tokens"] == 7


def test_stop_strings_look_at_the_answer_only(say: Any) -> None:
    encoder, read = say("STOP</think>a STOP b", stop=["STOP"])
    assert encoder.over and (read.reasoning, read.content, read.end) == ("STOP", "a ", "stop")


def test_logprobs(facts: ServerInfo, prompts: Prompts, spelling: Spelling, grammars: Grammars) -> None:
    translator = Translator(facts, spelling, grammars, PlainTurns(prompts))
    body = {"messages": [{"role": "user", "content": "q"}], "logprobs": True, "top_logprobs": 2}
    ask = translator.read("chat", json.dumps(body).encode())
    assert ask.logprobs == 2
    encoder = ENCODERS["chat"](ask, "h", 5, spelling)
    encoder.started(0)
    (id,) = spelling.encode("a")
    for token in (spelling.end_think, id):
        encoder.token(Token(token, -0.5, ((token, -0.5), (spelling.end_think, -2.0))))
    encoder.finish(length=False)
    (entry,) = encoder.answer()["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -0.5, [97])
    assert [one["token"] for one in entry["top_logprobs"]] == ["a", "</think>"]
    assert bytes(entry["top_logprobs"][1]["bytes"]).decode() == "</think>"


def test_hidden_thinking(say: Any) -> None:
    encoder, read = say("secret</think>shown", include_reasoning=False)
    assert (read.reasoning, read.content) == ("", "shown")
    assert "secret" not in json.dumps(encoder.answer())


@pytest.mark.parametrize("protocol", ["chat", "messages", "responses"])
def test_a_cut_call_in_every_protocol(
    facts: ServerInfo, prompts: Prompts, spelling: Spelling, grammars: Grammars, protocol: Any
) -> None:
    translator = Translator(facts, spelling, grammars, PlainTurns(prompts))
    message = {"messages": [{"role": "user", "content": "q"}], "stream": True}
    body: dict[str, Any] = {
        "chat": {**message, "tools": [TOOL]},
        "messages": {
            **message,
            "max_tokens": 99,
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        },
        "responses": {"input": "q", "stream": True, "tools": [{"type": "function", "name": "f"}]},
    }[protocol]
    encoder = ENCODERS[protocol](translator.read(protocol, json.dumps(body).encode()), "h", 5, spelling)
    frames = [*encoder.open(0), *encoder.started(0)]
    for id in prompts.tokenizer.encode("hm</think>" + BLOCK[: BLOCK.index("ab") + 4]):
        frames += encoder.token(Token(id))
    text = "".join([*frames, *encoder.finish(length=False)])
    read = {"chat": read_chat, "messages": read_messages, "responses": read_responses}[protocol](text)
    assert read.end in ("length", "max_tokens", "incomplete")
    assert read.calls == [["f", '{"p": "ab"']]
    assert '"ab' not in json.dumps(encoder.answer()), "a plain answer leaves the call out"
