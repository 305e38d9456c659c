"""Requests of editors that can't be installed here, written from their public sources.

VS Code's Copilot with a custom endpoint: microsoft/vscode-copilot-chat, src/extension/byok/vscode-node/
customOAIProvider.ts (the address), byok/node/openAIEndpoint.ts (what is changed of a body), src/platform/
networking/common/{networking,openai,fetch}.ts (headers, body, messages).

JetBrains' AI Assistant with an OpenAI-compatible provider speaks through JetBrains/koog (its errors name
`OpenAILLMClient`: CLIProxyAPI #639): prompt-executor-openai-client{-base}/.../models/{OpenAIDataModels,
OpenAIChatCompletion,OpenAIModels}.kt. What those classes must find in an answer is checked as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from server.client import call
from server.conftest import Replayed

Replay = Callable[..., Replayed]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
READ = {"reasoning": "look", "tool_calls": [{"name": "read_file", "arguments": {"path": "a.txt"}}]}
DONE = {"reasoning": "fine", "content": "It says hello."}
COPILOT_HEADERS = {
    "Authorization": "Bearer any",
    "Content-Type": "application/json",
    "X-Request-Id": "6f6f2b0e-0000-4000-8000-000000000000",
    "X-Interaction-Type": "conversation-agent",
    "OpenAI-Intent": "conversation-agent",
    "X-GitHub-Api-Version": "2025-05-01",
    "X-Initiator": "user",
    "X-VSCode-User-Agent-Library-Version": "electron-fetch",
    "User-Agent": "GitHubCopilotChat/0.35.0",
}


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def resolved(url: str) -> str:
    """resolveCustomOAIUrl."""
    if "/chat/completions" in url:
        return url
    return f"{url.removesuffix('/').removesuffix('/v1')}/v1/chat/completions"


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_copilot_reads_a_file_and_ends(replay: Replay, base: str) -> None:
    """`thinking: true` of its settings: without temperature and limits of tokens."""
    running = replay(READ, DONE)
    path = resolved(running.url + base).removeprefix(running.url)
    tool = {"name": "read_file", "description": "Reads a file.", "parameters": SCHEMA}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an expert AI programming assistant."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "<context>\nmacOS\n</context>"}],
            "copilot_cache_control": {"type": "ephemeral"},
        },
        {"role": "user", "content": "What is in a.txt?", "name": "user"},
    ]
    body: dict[str, Any] = {
        "messages": messages, "model": "deepseek-v4-flash", "top_p": 1, "n": 1, "stream": True,
        "tools": [{"type": "function", "function": tool},
                  {"type": "function", "function": {**tool, "name": "no_arguments", "parameters": {}}}],
        "tool_choice": "auto", "stream_options": {"include_usage": True},
    }  # fmt: skip
    first = call(running.port, "POST", path, body, COPILOT_HEADERS)
    assert first.status == 200, first.text
    said = events(first.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in said if chunk["choices"]]
    calls = [one for delta in deltas for one in delta.get("tool_calls") or ()]
    assert calls[0]["id"] and calls[0]["function"]["name"] == "read_file"
    arguments = "".join(one["function"].get("arguments") or "" for one in calls)
    assert json.loads(arguments) == {"path": "a.txt"}
    assert (
        said[-1]["choices"] == []
        and {"prompt_tokens", "completion_tokens", "total_tokens"} <= said[-1]["usage"].keys()
    )
    named = first.headers["x-dsv4-notice"]
    assert "messages.copilot_cache_control is not" in named and "messages.name has no effect" in named
    function = {"name": "read_file", "arguments": arguments}
    messages += [
        {"role": "assistant", "content": "", "cot_id": "1", "cot_summary": "look",
         "tool_calls": [{"id": calls[0]["id"], "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": "hello"},
    ]  # fmt: skip
    second = call(running.port, "POST", path, body, COPILOT_HEADERS)
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in events(second.text)[:-1]]
    assert "".join(texts) == DONE["content"]
    assert running.worker.stats().cached_tokens > 0, "the second turn goes on from the first"


def test_copilot_asks_for_a_title_and_for_an_edit(replay: Replay) -> None:
    """Without `thinking` a temperature stays; edits come with a prediction."""
    running = replay({"content": "A title"})
    prediction = {"type": "content", "content": "def f(): pass"}
    body = {
        "messages": [{"role": "system", "content": "You title."}, {"role": "user", "content": "q"}],
        "model": "m", "temperature": 0, "top_p": 1, "n": 1, "stream": True, "stop": ["---"],
        "prediction": prediction, "stream_options": {"include_usage": True},
    }  # fmt: skip
    reply = call(running.port, "POST", resolved("/v1"), body, COPILOT_HEADERS)
    assert reply.status == 200 and "x-dsv4-notice" not in reply.headers
    assert "A title" in "".join(
        c["choices"][0]["delta"].get("content") or "" for c in events(reply.text)[:-1]
    )


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_copilots_other_kinds_of_address(replay: Replay, api: str) -> None:
    """`apiType` of its settings; in Responses `store` is set, and no earlier one is named at first."""
    running = replay(DONE)
    tool = {"name": "read_file", "description": "Reads."}
    both = {"model": "m", "stream": True, "top_p": 1}
    if api == "responses":
        content = [{"type": "input_text", "text": "q"}]
        body: dict[str, Any] = {
            **both, "input": [{"role": "user", "content": content}], "store": True, "max_output_tokens": 500,
            "tools": [{"type": "function", **tool, "strict": False, "parameters": SCHEMA}],
            "tool_choice": "auto", "truncation": "disabled", "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "medium", "summary": "detailed"}, "text": {"verbosity": "low"},
        }  # fmt: skip
    else:
        cached = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}
        body = {
            **both, "messages": [{"role": "user", "content": [cached]}], "max_tokens": 500,
            "system": [{"type": "text", "text": "s"}], "tools": [{**tool, "input_schema": SCHEMA}],
            "thinking": {"type": "enabled", "budget_tokens": 64}, "context_management": {"edits": []},
        }  # fmt: skip
    reply = call(running.port, "POST", f"/v1/{api}", body, COPILOT_HEADERS)
    assert reply.status == 200, reply.text
    end = "response.completed" if api == "responses" else "message_stop"
    assert f'"type":"{end}"' in reply.text


def koog(**fields: Any) -> dict[str, Any]:
    """OpenAIChatCompletionRequest, whose nulls are not written."""
    messages = [
        {"role": "system", "content": "You are an assistant in an IDE."},
        {"role": "user", "content": [{"type": "text", "text": "What is in a.txt?"}]},
    ]
    return {"messages": messages, "model": "deepseek-v4-flash", **fields}


def check_koog(answer: dict[str, Any]) -> dict[str, Any]:
    """What has no default in OpenAIChatCompletionResponse and the classes in it. Returns the message."""
    assert {"id", "model", "created", "object", "choices"} <= answer.keys()
    (choice,) = answer["choices"]
    assert isinstance(choice["finish_reason"], str) and isinstance(choice["index"], int)
    message: dict[str, Any] = choice["message"]
    assert message["role"] == "assistant"
    for one in message.get("tool_calls") or ():
        assert isinstance(one["id"], str) and isinstance(one["function"]["name"], str)
    assert isinstance(answer["usage"]["total_tokens"], int)
    return message


def test_jetbrains_lists_the_models(replay: Replay) -> None:
    listed = call(replay(DONE).port, "GET", "/v1/models", None, {"Authorization": "Bearer any"}).json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        assert isinstance(model["id"], str) and isinstance(model["created"], int)


def test_jetbrains_runs_a_tool(replay: Replay) -> None:
    running = replay(READ, DONE)
    tool = {"type": "function", "function": {"name": "read_file", "description": "d", "parameters": SCHEMA}}
    asked = koog(tools=[tool], toolChoice="auto", temperature=0.0, stream=False, parallel_tool_calls=True)
    asked["tool_choice"] = asked.pop("toolChoice")
    first = check_koog(call(running.port, "POST", "/v1/chat/completions", asked).json())
    (made,) = first["tool_calls"]
    calls = [{"id": made["id"], "function": made["function"], "type": "function"}]
    asked["messages"] += [
        {"role": "assistant", "reasoning_content": first["reasoning_content"], "tool_calls": calls},
        {"role": "tool", "content": "hello", "tool_call_id": made["id"]},
    ]
    second = check_koog(call(running.port, "POST", "/v1/chat/completions", asked).json())
    assert second["content"] == DONE["content"]


def test_jetbrains_streams(replay: Replay) -> None:
    asked = koog(stream=True, stream_options={"include_usage": True}, max_completion_tokens=500, n=1)
    reply = call(replay(DONE).port, "POST", "/v1/chat/completions", asked)
    chunks = events(reply.text)
    assert all({"id", "model", "created", "object", "choices"} <= chunk.keys() for chunk in chunks)
    told = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(one["delta"].get("content") or "" for one in told) == DONE["content"]
    assert chunks[-1]["usage"]["total_tokens"] > 0 and told[-1]["finish_reason"] == "stop"


def test_jetbrains_wants_a_form(replay: Replay) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "Answer", "schema": schema, "strict": True}}
    running = replay({"content": '{"a": 1}'})
    asked = koog(response_format=form, reasoning_effort="none", stream=False)
    said = check_koog(call(running.port, "POST", "/v1/chat/completions", asked).json())
    assert json.loads(said["content"]) == {"a": 1}
