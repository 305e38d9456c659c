"""Refusals and failures in each family's shape, and what reaches the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server.client import call
from server.conftest import Start
from server.fakes import Script
from server.sse import events

from dsv4_mlx.errors import DoesNotFit, ModelOutputError
from dsv4_mlx.scheduler.request import QueueFull, Unavailable
from dsv4_mlx.server.options import ServerOptions

HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 50},
}


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
    port = start(options=ServerOptions(port=0, strict_model=True)).port
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
        assert reply.headers.get("allow") == ("POST" if status == 405 else None)
    for path in ("/v1/embeddings", "/v1/audio/speech", "/v1/images/generations", "/v1/rerank"):
        assert "this model makes no " in call(port, "POST", path, {}).json()["error"]["message"]
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
