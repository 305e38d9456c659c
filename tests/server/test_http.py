"""Routes, aliases, shapes and statuses over a real socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server.client import call
from server.conftest import Start
from server.fakes import Script
from server.said import events, read_chat, read_messages, read_responses

from dsv4_mlx.errors import DoesNotFit, ModelOutputError
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.serving.job import QueueFull, Unavailable

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


def test_metrics(start: Start) -> None:
    port = start().port
    call(port, "POST", "/v1/chat/completions", BODIES["/v1/chat/completions"])
    text = call(port, "GET", "/metrics").text
    assert 'dsv4_requests_total{api="/chat/completions",code="200"} 1' in text
    assert "dsv4_ttft_seconds_count 1" in text
    for line in text.splitlines():
        assert line.startswith("#") or len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0


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
    assert "".join(logprobs["tokens"]) == "\nhello" and logprobs["text_offset"][0] == 2
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


@pytest.mark.parametrize("path", BODIES)
def test_prompts_that_are_too_long(start: Start, path: str) -> None:
    """A status that no client retries, and the numbers where clients of each family read them."""
    running = start(context=64)
    long = "word " * 200
    given: dict[str, Any] = {
        "messages": [{"role": "user", "content": long}],
        "prompt": long,
        "input": long,
    }
    body = {name: given.get(name, value) for name, value in BODIES[path].items()}
    reply = call(running.port, "POST", path, body)
    assert reply.status == 400 and not running.worker.jobs
    error = reply.json()["error"]
    if path == "/v1/messages":
        first, _, rest = error["message"].partition(" tokens > ")
        assert int(first.removeprefix("prompt is too long: ")) > int(rest.removesuffix(" maximum")) == 64
    else:
        assert (error["code"], error["n_ctx"]) == ("context_length_exceeded", 64)
        assert error["n_prompt_tokens"] > 64 and "maximum context length is 64 tokens" in error["message"]


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (QueueFull(3, 4.6), (429, "rate_limit_error"), (429, "rate_limit_error")),
        (Unavailable("closing"), (503, "server_error"), (529, "overloaded_error")),
        (DoesNotFit("too long"), (400, "invalid_request_error"), (400, "invalid_request_error")),
        (RuntimeError("secret detail"), (500, "server_error"), (500, "api_error")),
    ],
)
def test_refusals_in_each_familys_shape(start: Start, error: Any, openai: Any, anthropic: Any) -> None:
    running = start()
    running.worker.refuse = error
    reply = call(running.port, "POST", "/v1/chat/completions", {"messages": HI})
    said = reply.json()["error"]
    assert (reply.status, said["type"]) == openai
    assert said.keys() == {"message", "type", "param", "code"} and isinstance(said["code"], str)
    other = call(running.port, "POST", "/v1/messages", BODIES["/v1/messages"])
    assert (other.status, other.json()["error"]["type"]) == anthropic
    assert other.json()["type"] == "error" and other.json()["request_id"] == other.headers["request-id"]
    assert "secret" not in reply.text + other.text
    if isinstance(error, QueueFull):
        assert reply.headers["retry-after"] == "5"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_turn_that_fails(start: Start, path: str, stream: bool) -> None:
    failure = ModelOutputError("the device failed")
    running = start(Script("hm</think>hel", finish="error", error=failure))
    reply = call(running.port, "POST", path, {**BODIES[path], "stream": stream})
    if not stream:
        assert reply.status == 500 and "device failed" in reply.text
        return
    assert reply.status == 200 and "[DONE]" not in reply.text
    name, last = events(reply.text)[-1]
    if path == "/v1/messages":
        assert (name, last["type"], last["error"]["type"]) == ("error", "error", "api_error")
    elif path == "/v1/responses":
        assert (name, last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"] == {"code": "server_error", "message": "the device failed"}
    else:
        assert last["error"]["message"] == "the device failed"


def test_a_bug_is_contained_and_its_details_stay_here(start: Start) -> None:
    running = start(Script("x", finish="error", error=RuntimeError("secret detail")), Script("</think>fine"))
    reply = call(running.port, "POST", "/v1/chat/completions", {"messages": HI})
    assert reply.status == 500 and "crash.log" in reply.text and "secret" not in reply.text
    assert "secret detail" in running.crashes[0]
    assert call(running.port, "POST", "/v1/chat/completions", {"messages": HI}).status == 200


def test_unknown_things(start: Start) -> None:
    port = start().port
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("GET", "/v1/responses/resp_1", 404),
        ("DELETE", "/v1/responses/resp_1", 404),
        ("GET", "/v1/models/other", 404),
    ):
        reply = call(port, method, path, {} if method == "POST" else None)
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), path
        assert "message" in reply.json()["error"]
    assert call(port, "GET", "/anthropic/nothing").json()["type"] == "error"
    other = call(port, "GET", "/v1/models/other", None, {"anthropic-version": "2023-06-01"})
    assert (other.status, other.json()["error"]["type"]) == (404, "not_found_error")


def test_while_loading(start: Start) -> None:
    running = start()
    running.worker.state = "loading"
    assert call(running.port, "GET", "/health").json()["status"] == "loading"
    for path, status in (("/health", 503), ("/v1/models", 200)):
        assert call(running.port, "GET", path).status == status
    reply = call(running.port, "POST", "/v1/messages", BODIES["/v1/messages"])
    assert (reply.status, reply.headers["retry-after"]) == (529, "5")


def test_forms_that_cant_be_enforced_are_refused(start: Start) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "(?=x)y"}},
        "required": ["a"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    running = start()
    reply = call(running.port, "POST", "/v1/chat/completions", {"messages": HI, "response_format": form})
    assert (reply.status, running.worker.jobs) == (400, [])


def test_what_reaches_the_engine(start: Start, spelling: Any) -> None:
    running = start()
    body = {
        "messages": HI,
        "logprobs": True,
        "max_tokens": 9,
        "thinking": {"type": "enabled", "budget_tokens": 5},
    }
    call(running.port, "POST", "/v1/chat/completions", {**body, "response_format": {"type": "json_object"}})
    (job,) = running.worker.jobs
    assert (job.logprobs, job.max_tokens, job.think_budget) == (0, 9, 5)
    assert job.constraint is not None and job.sampling.logit_bias == {spelling.dsml: -1000.0}
    call(
        running.port,
        "POST",
        "/v1/chat/completions",
        {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}]},
    )
    assert running.worker.jobs[-1].constraint is not None and not running.worker.jobs[-1].sampling.logit_bias


def test_turns_are_remembered_as_the_client_got_them(start: Start) -> None:
    block = '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    running = start(Script("hm</think>x\n\n" + block))
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}]},
        "/v1/messages": {"messages": HI, "max_tokens": 99, "tools": [{"name": "f"}]},
        "/v1/responses": {"input": "hi", "tools": [{"type": "function", "name": "f"}]},
    }
    for path, body in bodies.items():
        for stream in (True, False):
            text = call(running.port, "POST", path, {**body, "stream": stream}).text
            prompt, sampled, said, handle = running.turns.remembered[-1]
            assert (said.reasoning, said.content, len(said.calls)) == ("hm", "x", 1)
            assert said.calls[0].id in text and handle in text and json.loads(said.calls[0].arguments) == {}
            assert prompt == running.worker.jobs[-1].prompt and sampled
    count = len(running.turns.remembered)
    call(running.port, "POST", "/v1/chat/completions", {"messages": HI, "max_tokens": 3})
    assert len(running.turns.remembered) == count, "a turn that a limit cut off is not kept"
