"""Routes, aliases, shapes and statuses over a real socket."""

from __future__ import annotations

from typing import Any

import pytest
from server.client import call
from server.conftest import Start
from server.fakes import Script
from server.sse import events, read_chat, read_messages, read_responses

from dsv4_mlx.server.options import ServerOptions

HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 50},
}


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/beta/chat/completions", "/v1/chat/completions"),
        ("/beta/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/chat/completions?x=1", "/v1/chat/completions"),
        ("//v1//chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/beta/completions", "/v1/completions"),
        ("/beta/v1/completions", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/anthropic/messages", "/v1/messages"),
        ("/v1/messages?beta=true", "/v1/messages"),
    ],
)
def test_aliases(start: Start, path: str, like: str) -> None:
    assert call(start().port, "POST", path, BODIES[like]).status == 200


def test_reading_routes(start: Start) -> None:
    port = start().port
    for path in ("/", "/health", "/healthz", "/v1/health", "/v1/models", "/models", "/anthropic/v1/models",
                 "/v1/models/deepseek-v4-flash", "/openapi.json", "/user/balance", "/metrics"):  # fmt: skip
        reply = call(port, "GET", path)
        assert reply.status == 200, path
        head = call(port, "HEAD", path)
        assert (head.status, head.body) == (200, b"")
    listed = call(port, "GET", "/v1/models").json()
    (one,) = listed["data"]
    assert listed["first_id"] == listed["last_id"] == one["id"] == "deepseek-v4-flash"
    assert one["context_length"] == one["max_model_len"] == one["meta"]["n_ctx"] == 4096
    assert {"object", "type", "display_name", "created", "created_at", "lifecycle"} <= one.keys()


@pytest.mark.parametrize("path", BODIES)
def test_the_models_name_is_echoed_and_nothing_else(start: Start, path: str) -> None:
    for name in ("gpt-5", "/etc/passwd", "org/model", "../x"):
        assert call(start().port, "POST", path, {**BODIES[path], "model": name}).json()["model"] == name


def test_strict_model(start: Start) -> None:
    port = start(options=ServerOptions(port=0, strict_model=True)).port
    body = {**BODIES["/v1/chat/completions"], "model": "gpt-5"}
    reply = call(port, "POST", "/v1/chat/completions", body)
    assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_chat(start: Start) -> None:
    running = start(Script("hm</think>hello", cached=2))
    reply = call(running.port, "POST", "/v1/chat/completions", {"messages": HI})
    answer = reply.json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "reasoning_content": "hm"}
    assert (choice["finish_reason"], answer["object"]) == ("stop", "chat.completion")
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 6 and usage["total_tokens"] == 6 + usage["completion_tokens"]
    assert (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (2, 4)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2, "cache_write_tokens": 4}
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 2
    assert reply.headers["x-dsv4-cache"] == "hit=2; miss=4"
    assert reply.headers["x-request-id"].startswith("req_") and "server" not in reply.headers


@pytest.mark.parametrize("usage", [True, False])
def test_chat_stream(start: Start, usage: bool) -> None:
    body = {"messages": HI, "stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
    reply = call(start(Script("hm</think>hello")).port, "POST", "/v1/chat/completions", body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.startswith(": keep-alive\n\n")
    found = [data for _, data in events(reply.text)]
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    if usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens"] == 6
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        chunks = chunks[:-1]
    assert all(len(chunk["choices"]) == 1 and not chunk.get("usage") for chunk in chunks)
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    read = read_chat(reply.text)
    assert (read.reasoning, read.content) == ("hm", "hello")


def test_messages(start: Start) -> None:
    running = start(Script("hm</think>hello", cached=2))
    answer = call(running.port, "POST", "/v1/messages", BODIES["/v1/messages"]).json()
    handle = answer["id"].removeprefix("msg_")
    assert answer["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": handle},
        {"type": "text", "text": "hello"},
    ]
    assert (answer["stop_reason"], answer["role"]) == ("end_turn", "assistant")
    assert (answer["usage"]["input_tokens"], answer["usage"]["cache_read_input_tokens"]) == (4, 2)
    stream = call(running.port, "POST", "/v1/messages", {**BODIES["/v1/messages"], "stream": True}).text
    names = [name for name, _ in events(stream)]
    assert names[:2] == ["message_start", "ping"] and names[-2:] == ["message_delta", "message_stop"]
    assert names.count("message_start") == 1 and "[DONE]" not in stream
    assert events(stream)[0][1]["message"]["usage"]["cache_read_input_tokens"] == 2
    read = read_messages(stream)
    assert (read.reasoning, read.content, read.end) == ("hm", "hello", "end_turn")


def test_responses(start: Start) -> None:
    running = start(Script("hm</think>hello", cached=2))
    answer = call(running.port, "POST", "/v1/responses", BODIES["/v1/responses"]).json()
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message"]
    assert (answer["status"], answer["store"], answer["object"]) == ("completed", False, "response")
    details = answer["usage"]["input_tokens_details"]
    assert (details["cached_tokens"], details["cache_write_tokens"]) == (2, 4)
    stream = call(running.port, "POST", "/v1/responses", {"input": "hi", "stream": True}).text
    names = [name for name, _ in events(stream)]
    assert names[:2] == ["response.created", "response.in_progress"] and names[-1] == "response.completed"
    assert "[DONE]" not in stream
    read = read_responses(stream)
    assert (read.reasoning, read.content, read.end) == ("hm", "hello", "completed")
    whole = events(stream)[-1][1]["response"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["usage"]["input_tokens_details"]["cache_write_tokens"] == 4


def test_namespaced_calls(start: Start) -> None:
    call_ = '<｜DSML｜invoke name="{}">\n</｜DSML｜invoke>\n'
    block = (
        "</think><｜DSML｜tool_calls>\n"
        + "".join(call_.format(n) for n in ("ns__g", "g", "f"))
        + "</｜DSML｜tool_calls>"
    )
    tools = [
        {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "g"}]},
        {"type": "function", "name": "f"},
    ]
    answer = call(start(Script(block)).port, "POST", "/v1/responses", {"input": "x", "tools": tools}).json()
    made = [i for i in answer["output"] if i["type"] == "function_call"]
    assert [(i["name"], i.get("namespace")) for i in made] == [("g", "ns"), ("g", "ns"), ("f", None)]


def test_custom_tool_calls(start: Start) -> None:
    block = (
        '</think><｜DSML｜tool_calls>\n<｜DSML｜invoke name="apply_patch">\n'
        '<｜DSML｜parameter name="input" string="true">'
        "*** x</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )
    tools = [{"type": "custom", "name": "apply_patch"}]
    answer = call(start(Script(block)).port, "POST", "/v1/responses", {"input": "x", "tools": tools}).json()
    (made,) = [i for i in answer["output"] if "call" in i["type"]]
    assert (made["type"], made["name"], made["input"]) == ("custom_tool_call", "apply_patch", "*** x")


def test_text_completion(start: Start) -> None:
    running = start(Script("\nhello"))
    body = {"prompt": "hi", "echo": True, "logprobs": 2}
    answer = call(running.port, "POST", "/v1/completions", body).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], answer["object"]) == (
        "hi\nhello",
        "stop",
        "text_completion",
    )
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == "hi\nhello" and logprobs["text_offset"][0] == 0
    assert (
        logprobs["token_logprobs"][0] == -1
    )  # that of the first token after the marker that begins a prompt
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"])
    stream = call(running.port, "POST", "/v1/completions", {**body, "stream": True}).text
    chunks = [data for _, data in events(stream)][:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hi\nhello"
    offsets = [
        at for chunk in chunks for at in (chunk["choices"][0]["logprobs"] or {}).get("text_offset", [])
    ]
    assert offsets == logprobs["text_offset"]


def test_count_tokens_is_exact(start: Start) -> None:
    running = start()
    body = {"messages": HI, "system": "be brief"}
    counted = call(running.port, "POST", "/v1/messages/count_tokens", body).json()["input_tokens"]
    call(running.port, "POST", "/v1/messages", {**body, "max_tokens": 5})
    assert counted == len(running.worker.jobs[-1].prompt)
    assert call(running.port, "POST", "/v1/responses/input_tokens", {"input": "x"}).json()["input_tokens"] > 3


def test_tokenize_and_back(start: Start) -> None:
    port = start().port
    text = "\n\nhé 😀 <｜User｜>"
    plain = call(port, "POST", "/tokenize", {"content": text}).json()["tokens"]
    special = call(port, "POST", "/tokenize", {"content": text, "parse_special": True}).json()["tokens"]
    assert len(special) < len(plain)
    for tokens in (plain, special):
        assert call(port, "POST", "/detokenize", {"tokens": tokens}).json()["content"] == text
    assert call(port, "POST", "/detokenize", {"tokens": [10**9]}).status == 400


def test_stop_and_length(start: Start) -> None:
    port = start(Script("</think>one two three")).port
    body = {"messages": HI, "stop": ["two"], "thinking": {"type": "disabled"}}
    stopped = call(port, "POST", "/v1/chat/completions", body).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("one ", "stop")
    assert "reasoning_content" not in stopped["message"]
    cut = call(port, "POST", "/v1/chat/completions", {"messages": HI, "max_tokens": 2}).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    sequence = call(
        port, "POST", "/v1/messages", {"messages": HI, "max_tokens": 50, "stop_sequences": ["two"]}
    ).json()
    assert (sequence["stop_reason"], sequence["stop_sequence"]) == ("stop_sequence", "two")
    most = call(port, "POST", "/v1/messages", {"messages": HI, "max_tokens": 2}).json()
    assert most["stop_reason"] == "max_tokens"
    short = call(port, "POST", "/v1/responses", {"input": "x", "max_output_tokens": 2}).json()
    assert (short["status"], short["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
