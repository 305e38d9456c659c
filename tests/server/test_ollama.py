"""Ollama's protocol: its own Python client, and requests that other programs are known to send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ollama
import pytest
from pydantic import BaseModel
from server.client import call
from server.conftest import Replayed

Replay = Callable[..., Replayed]
HI: Any = [{"role": "user", "content": "What is in a.txt?"}]
CALLING = {"reasoning": "I must look", "tool_calls": [{"name": "read", "arguments": {"path": "a.txt"}}]}
ANSWER = {"reasoning": "now I know", "content": "It says hello 😀."}


def read(path: str) -> str:
    """Read a file.

    Args:
        path: where it is
    """
    return f"hello from {path}"


class City(BaseModel):
    city: str
    height: int


@pytest.fixture
def client(replay: Replay) -> Iterator[Callable[..., ollama.Client]]:
    made: list[Any] = []

    def begin(*turns: dict[str, Any], **options: Any) -> ollama.Client:
        made.append(ollama.Client(host=replay(*turns, **options).url))
        one: ollama.Client = made[-1]
        return one

    yield begin
    for one in made:
        one.close()


def test_a_tool_loop(client: Callable[..., ollama.Client]) -> None:
    """As the client's README has it: a Python function as a tool, its result by name, no ids."""
    ai = client(CALLING, ANSWER)
    first = ai.chat("m", HI, tools=[read], think=True)
    assert first.message.thinking == "I must look" and first.message.tool_calls
    (made,) = first.message.tool_calls
    assert (made.function.name, made.function.arguments) == ("read", {"path": "a.txt"})
    result = {"role": "tool", "tool_name": "read", "content": read("a.txt")}
    second = ai.chat("m", [*HI, first.message, result], tools=[read], think=True)
    assert (second.message.content, second.message.thinking) == (ANSWER["content"], ANSWER["reasoning"])
    assert second.done and second.done_reason == "stop"
    assert second.prompt_eval_count and second.eval_count and second.total_duration


def test_a_stream(client: Callable[..., ollama.Client]) -> None:
    parts = list(client(ANSWER).chat("m", HI, stream=True, think=True))
    assert "".join(p.message.content or "" for p in parts) == ANSWER["content"]
    assert "".join(p.message.thinking or "" for p in parts) == ANSWER["reasoning"]
    assert [p.done for p in parts] == [*[False] * (len(parts) - 1), True] and parts[-1].eval_count


def test_a_streamed_call_comes_whole(client: Callable[..., ollama.Client]) -> None:
    parts = list(client(CALLING).chat("m", HI, stream=True, tools=[read]))
    calls = [one for part in parts for one in part.message.tool_calls or ()]
    assert [(one.function.name, one.function.arguments) for one in calls] == [("read", {"path": "a.txt"})]


def test_thinking_is_off_and_forms_are_held(client: Callable[..., ollama.Client]) -> None:
    ai = client({"content": '{"city": "Quito", "height": 2850}'}, {"content": "plain"})
    answer = ai.chat("m", HI, format=City.model_json_schema(), think=False, options={"temperature": 0})
    assert City.model_validate_json(answer.message.content or "").city == "Quito"
    assert answer.message.thinking is None


def test_generate(client: Callable[..., ollama.Client]) -> None:
    ai = client(ANSWER, ANSWER, {"content": "return 1"})
    whole = ai.generate("m", "Why?", system="Be brief.", think=True)
    assert (whole.response, whole.thinking, whole.done_reason) == (
        ANSWER["content"],
        ANSWER["reasoning"],
        "stop",
    )
    parts = list(ai.generate("m", "Why?", stream=True))
    assert "".join(part.response or "" for part in parts) == ANSWER["content"] and parts[-1].done
    filled = ai.generate("m", "def f():\n    ", suffix="\n", options={"num_predict": 20})
    assert filled.response == "return 1"


def test_a_limit(client: Callable[..., ollama.Client]) -> None:
    cut = client(ANSWER).chat("m", HI, think=False, options={"num_predict": 3})
    assert cut.done_reason == "length" and cut.eval_count == 3


def test_what_is_there(client: Callable[..., ollama.Client]) -> None:
    ai = client(ANSWER)
    (listed,) = ai.list().models
    assert listed.model and [one.model for one in ai.ps().models] == [listed.model]
    shown = ai.show(listed.model)
    assert {"tools", "thinking", "completion"} <= set(shown.capabilities or ())
    assert (shown.modelinfo or {})["deepseek4.context_length"] > 1000
    assert ai.generate(listed.model, "").done_reason == ai.chat(listed.model, []).done_reason == "load"


def test_embeddings_and_models_of_its_own_are_told_in_a_sentence(
    client: Callable[..., ollama.Client],
) -> None:
    ai = client(ANSWER)
    ask: list[tuple[Callable[[], object], str]] = [
        (lambda: ai.embed("m", "x"), "no embeddings"),
        (lambda: ai.pull("m"), "dsv4-mlx models"),
        (lambda: ai.delete("m"), "dsv4-mlx models"),
    ]
    for wrong, words in ask:
        with pytest.raises(ollama.ResponseError, match=words) as refused:
            wrong()
        assert refused.value.status_code == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": HI, "options": {"mirostat": 2}}, "options.mirostat"),
        ({"messages": HI, "options": {"temprature": 1}}, "'temprature'"),
        ({"messages": HI, "options": {"temperature": "hot"}}, "temperature"),
        ({"messages": HI, "format": "xml"}, "format is 'xml'"),
        ({"messages": HI, "think": 3}, "think is 3"),
        ({"messages": "hi"}, "messages is"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "no call before it"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content is"),
        ({"messages": HI, "tools": [{"type": "function"}]}, "name"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": 7}]}]},
            "function is",
        ),
    ],
)
def test_bad_bodies(body: dict[str, Any], words: str, replay: Replay) -> None:
    reply = call(replay(ANSWER).port, "POST", "/api/chat", {"model": "m", **body})
    assert reply.status == 400 and words in reply.json()["error"], reply.text
    assert set(reply.json()) == {"error"}


def test_what_has_no_effect_is_said_in_a_header(replay: Replay) -> None:
    options = {"num_ctx": 4096, "num_gpu": 99, "typical_p": 1.0, "num_predict": -1}
    body = {
        "messages": [{**HI[0], "images": ["aGk="]}],
        "options": options,
        "stream": False,
        "keep_alive": "5m",
    }
    reply = call(replay(ANSWER).port, "POST", "/api/chat", body)
    notice = reply.headers["x-dsv4-notice"]
    assert (
        reply.status == 200
        and "options.num_ctx" in notice
        and "options.num_gpu" in notice
        and "images" in notice
    )
    assert "typical_p" not in notice and reply.json()["message"]["content"] == ANSWER["content"]


def test_the_probe_of_its_programs(replay: Replay) -> None:
    port = replay(ANSWER).port
    assert call(port, "HEAD", "/").status == 200
    version = call(port, "GET", "/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)
