"""What is not plain text: read where it is text, a remark where it is an image, refused by name elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from anthropic import Anthropic
from server.client import call
from server.conftest import Replayed, Start
from server.fakes import Script

from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols import chat, messages, responses
from dsv4_mlx.server.protocols.request import ServerInfo
from dsv4_mlx.tokenizer.template import Prompts, Spelling

HI = [{"role": "user", "content": "hi"}]
ZEBRA = base64.b64encode(b"zebra crossing").decode()
PDF = base64.b64encode(b"%PDF-1.7\x00\xff").decode()
CHAT = "/v1/chat/completions"


@pytest.fixture
def shown(facts: ServerInfo, prompts: Prompts, spelling: Spelling) -> Callable[[Any, dict[str, Any]], str]:
    def text(protocol: Any, body: dict[str, Any]) -> str:
        ask = protocol.read(body, facts)
        assert ask.conversation is not None
        return spelling.decode(prompts.encode(ask.conversation))

    return text


def document(**source: str) -> dict[str, Any]:
    return {"type": "document", "title": "Title", "source": source}


def in_messages(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}], "max_tokens": 5}


def in_result(*blocks: Any) -> dict[str, Any]:
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": list(blocks)}
    return {"messages": [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]}


@pytest.mark.parametrize("place", [in_messages, in_result])
@pytest.mark.parametrize(
    ("block", "said"),
    [
        (document(type="text", media_type="text/plain", data="zebra"), "Title\n\nzebra"),
        (document(type="base64", media_type="text/plain", data=ZEBRA), "Title\n\nzebra crossing"),
        ({"type": "document", "source": {"type": "content", "content": "zebra"}}, "zebra"),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "zebra"}]},
            },
            "zebra",
        ),
        (
            {
                "type": "search_result",
                "source": "https://x.example",
                "title": "Title",
                "content": [{"type": "text", "text": "zebra"}],
            },
            "Title\nhttps://x.example\n\nzebra",
        ),
    ],
)
def test_documents_in_messages(shown: Any, place: Any, block: dict[str, Any], said: str) -> None:
    assert said in shown(messages, place(block))


@pytest.mark.parametrize("place", [in_messages, in_result])
@pytest.mark.parametrize(
    ("block", "named"),
    [
        (document(type="base64", media_type="application/pdf", data=PDF), "application/pdf"),
        (document(type="url", url="https://x.example/a.pdf"), "'url'"),
        (document(type="file", file_id="f"), "'file'"),
        (document(type="base64", media_type="text/plain", data="?"), "base64"),
        ({"type": "container_upload", "file_id": "f"}, "container_upload"),
    ],
)
def test_documents_that_nobody_here_can_read(
    facts: ServerInfo, place: Any, block: dict[str, Any], named: str
) -> None:
    with pytest.raises(ApiError, match=named) as refused:
        messages.read(place(block), facts)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"filename": "a.txt", "file_data": f"data:text/plain;base64,{ZEBRA}"}, "a.txt\nzebra crossing"),
        ({"file_data": ZEBRA}, "zebra crossing"),
        ({"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}, None),
        ({"filename": "a.pdf", "file_data": PDF}, None),
        ({"file_id": "f"}, None),
        ({"file_url": "https://x.example"}, None),
    ],
)
def test_files_in_both_protocols_of_openai(
    shown: Any, facts: ServerInfo, file: dict[str, str], said: str | None
) -> None:
    part = {"role": "user", "content": [{"type": "file", "file": file}]}
    item = {"role": "user", "content": [{"type": "input_file", **file}]}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", **file}]}
    made = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    for protocol, body in (
        (chat, {"messages": [part]}),
        (responses, {"input": [item]}),
        (responses, {"input": [*HI, made, output]}),
    ):
        if said is not None:
            assert said in shown(protocol, body)
        else:
            with pytest.raises(ApiError, match="file"):
                protocol.read(body, facts)


def test_refusals_are_what_the_model_said(shown: Any) -> None:
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't"}]}
    assert "I won't" in shown(chat, {"messages": [*HI, said, *HI]})
    assert "I won't" in shown(responses, {"input": [*HI, {"type": "message", **said}, *HI]})


def test_calls_that_another_server_ran(shown: Any) -> None:
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "zebra"}}
    found = [{"type": "web_search_result", "title": "Title", "url": "U", "encrypted_content": "secret"}]
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": found}
    turn = [{"type": "text", "text": "before"}, use, result, {"type": "text", "text": "after"}]
    text = shown(messages, {"messages": [*HI, {"role": "assistant", "content": turn}, *HI]})
    order = [text.index(word) for word in ("before", "web_search", "zebra", "Title", "after")]
    assert order == sorted(order) and "secret" not in text
    made = {"type": "mcp_call", "id": "m", "name": "look", "arguments": '{"a": "zebra"}', "output": "Title"}
    text = shown(responses, {"input": [*HI, made, *HI]})
    assert text.index("look") < text.index("zebra") < text.index("<tool_result>Title</tool_result>")


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
def test_images_are_said_to_be_remarks(start: Start, path: str) -> None:
    parts = {
        CHAT: {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
        "/v1/messages": {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}},
        "/v1/responses": {"type": "input_image", "image_url": "https://x.example/a.png"},
    }
    user = [{"role": "user", "content": [parts[path]]}]
    body = {"max_tokens": 5, "messages": user} if path != "/v1/responses" else {"input": user}
    for stream in (False, True):
        reply = call(start().port, "POST", path, {**body, "stream": stream})
        assert reply.status == 200 and "images are not seen" in reply.headers["x-dsv4-notice"]
    plain = call(start().port, "POST", path, {"max_tokens": 5, "messages": HI}
                 if path != "/v1/responses" else {"input": "hi"})  # fmt: skip
    assert "x-dsv4-notice" not in plain.headers


def test_what_has_no_effect_is_said(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dsv4_mlx.server")
    body = {"messages": HI, "frobnicate": 1, "verbosity": "low", "metadata": {"a": "b"}}
    said = call(start().port, "POST", CHAT, body).headers["x-dsv4-notice"]
    assert said == "frobnicate is not in the specification; verbosity has no effect here"
    assert "frobnicate" in caplog.text


def test_the_longest_thinking_in_a_short_context_is_said(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(options=ServerOptions(port=0))
    body = {"messages": HI, "reasoning_effort": "max"}
    for _ in range(2):
        assert "393216" in call(running.port, "POST", CHAT, body).headers["x-dsv4-notice"]
    assert len([r for r in caplog.records if r.levelname == "WARNING" and "393216" in r.message]) == 1
    assert "x-dsv4-notice" not in call(running.port, "POST", CHAT, {"messages": HI}).headers


def test_allowed_tools(facts: ServerInfo) -> None:
    functions = [{"type": "function", "function": {"name": name}} for name in "fgh"]
    for mode, required in (("auto", False), ("required", True)):
        choice: dict[str, Any] = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": functions[:2]},
        }
        rule: Any = chat.read({"messages": HI, "tools": functions, "tool_choice": choice}, facts).rule
        assert [one["function"]["name"] for one in json.loads(rule.tools)] == ["f", "g"]
        assert rule.required == required
        flat = [{"type": "function", "name": name} for name in "fgh"]
        choice = {"type": "allowed_tools", "mode": mode, "tools": flat[:2]}
        rule = responses.read({"input": "x", "tools": flat, "tool_choice": choice}, facts).rule
        assert [one["function"]["name"] for one in json.loads(rule.tools)] == ["f", "g"]
    for named in ([{"type": "function", "name": "nope"}], [{"type": "mcp", "server_label": "s"}], []):
        choice = {"type": "allowed_tools", "mode": "auto", "tools": named}
        with pytest.raises(ApiError, match="allows"):
            responses.read({"input": "x", "tools": flat, "tool_choice": choice}, facts)


CALL = {"tool_calls": [{"name": "sql", "arguments": {"input": 'SELECT "a"\n;'}}]}
GRAMMAR = {"type": "grammar", "syntax": "regex", "definition": r"SELECT [^;]*;"}


@pytest.mark.parametrize("stream", [False, True])
def test_custom_tools_in_responses(replay: Callable[..., Replayed], stream: bool) -> None:
    running = replay(CALL, {"content": "done"})
    tools: Any = [{"type": "custom", "name": "sql", "description": "runs a query", "format": GRAMMAR}]
    with openai.OpenAI(base_url=running.url + "/v1", api_key="k") as ai:
        if stream:
            events = list(ai.responses.create(input="x", tools=tools, stream=True))
            kinds = [event.type for event in events]
            assert not [kind for kind in kinds if "function_call" in kind]
            (done,) = [event for event in events if event.type == "response.custom_tool_call_input.done"]
            assert done.input == 'SELECT "a"\n;'
            assert [event.sequence_number for event in events] == list(range(len(events)))
            answer = events[-1].response  # type: ignore[union-attr]
        else:
            answer = ai.responses.create(input="x", tools=tools)
        made = answer.output[-1]
        assert (made.type, made.name, made.input) == ("custom_tool_call", "sql", 'SELECT "a"\n;')  # type: ignore[union-attr]
        output: Any = {"type": "custom_tool_call_output", "call_id": made.call_id, "output": "1"}  # type: ignore[union-attr]
        history: Any = [{"role": "user", "content": "x"}, made.model_dump(), output]
        again = ai.responses.create(input=history, tools=tools)
    assert again.output_text == "done" and again.usage is not None
    assert again.usage.input_tokens_details.cached_tokens > 20


@pytest.mark.parametrize("stream", [False, True])
def test_custom_tools_in_chat_completions(replay: Callable[..., Replayed], stream: bool) -> None:
    running = replay(CALL, {"content": "done"})
    given = {
        "name": "sql",
        "format": {"type": "grammar", "grammar": {k: GRAMMAR[k] for k in ("syntax", "definition")}},
    }
    body = {"messages": HI, "tools": [{"type": "custom", "custom": given}], "stream": stream}
    reply = call(running.port, "POST", CHAT, body)
    assert reply.status == 200
    if stream:
        lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        calls = [one for choice in choices for one in choice["delta"].get("tool_calls", ())]
        assert choices[-1]["finish_reason"] == "tool_calls"
    else:
        calls = reply.json()["choices"][0]["message"]["tool_calls"]
        openai.types.chat.ChatCompletion.model_validate(reply.json())
    (made,) = calls
    assert made["type"] == "custom" and made["custom"] == {"name": "sql", "input": 'SELECT "a"\n;'}
    turn = {"role": "assistant", "tool_calls": [{k: v for k, v in made.items() if k != "index"}]}
    history = [*HI, turn, {"role": "tool", "tool_call_id": made["id"], "content": "1"}]
    again = call(running.port, "POST", CHAT, {**body, "messages": history, "stream": False}).json()
    assert again["choices"][0]["message"]["content"] == "done"
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 20


@pytest.mark.parametrize("path", ["/v1/responses", CHAT])
@pytest.mark.parametrize("definition", ['start: "ABC', "start: nowhere", "begin: /a/"])
def test_grammars_that_are_none_are_refused(start: Start, path: str, definition: str) -> None:
    grammar = {"syntax": "lark", "definition": definition}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/responses": {
            "input": "x",
            "tools": [{"type": "custom", "name": "a", "format": {"type": "grammar", **grammar}}],
        },
        CHAT: {
            "messages": HI,
            "tools": [
                {"type": "custom", "custom": {"name": "a", "format": {"type": "grammar", "grammar": grammar}}}
            ],
        },
    }
    reply = call(start().port, "POST", path, bodies[path])
    assert reply.status == 400 and reply.json()["error"]["param"] == "tools" and "'a'" in reply.text


def test_a_turn_that_the_client_began_has_no_thinking_to_show(start: Start) -> None:
    running = start(Script(" end"))
    with Anthropic(base_url=running.url, api_key="k") as ai:
        answer = ai.messages.create(
            model="m",
            max_tokens=2000,
            thinking={"type": "enabled", "budget_tokens": 1024},
            messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The"}],
        )
    assert [block.type for block in answer.content] == ["text"]
