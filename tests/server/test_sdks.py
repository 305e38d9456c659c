"""The vendors' own clients against a replayed model: streams, tool loops, JSON, thinking, errors, leaving."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel
from server.client import call, until
from server.conftest import Replayed

Replay = Callable[..., Replayed]
HI: Any = [{"role": "user", "content": "What is in a.txt?"}]
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TOOL: Any = {"type": "function", "function": {"name": "read", "parameters": PARAMETERS}}
CALLING = {"reasoning": "I must look", "tool_calls": [{"name": "read", "arguments": {"path": "a.txt"}}]}
ANSWER = {"reasoning": "now I know", "content": "It says hello 😀."}


class City(BaseModel):
    city: str
    height: int


@pytest.fixture
def client(replay: Replay) -> Iterator[Callable[..., openai.OpenAI]]:
    made: list[openai.OpenAI] = []

    def begin(*turns: dict[str, Any], **options: Any) -> openai.OpenAI:
        made.append(
            openai.OpenAI(base_url=replay(*turns, **options).url + "/v1", api_key="any", max_retries=0)
        )
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def claude(replay: Replay) -> Iterator[Callable[..., anthropic.Anthropic]]:
    made: list[anthropic.Anthropic] = []

    def begin(*turns: dict[str, Any], **options: Any) -> anthropic.Anthropic:
        made.append(anthropic.Anthropic(base_url=replay(*turns, **options).url, api_key="any", max_retries=0))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_openai_tool_loop(client: Callable[..., openai.OpenAI]) -> None:
    ai = client(CALLING, ANSWER)
    first = ai.chat.completions.create(model="m", messages=HI, tools=[TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and message.tool_calls
    (call,) = message.tool_calls
    assert call.type == "function" and json.loads(call.function.arguments) == {"path": "a.txt"}
    # as clients do that know nothing of reasoning_content, and write JSON their own way
    arguments = json.dumps(json.loads(call.function.arguments), separators=(",", ":"))
    function = {"name": "read", "arguments": arguments}
    calls = [{"id": call.id, "type": "function", "function": function}]
    said: Any = {"role": "assistant", "content": None, "tool_calls": calls}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "hello"}
    second = ai.chat.completions.create(model="m", messages=[*HI, said, result], tools=[TOOL])
    assert second.choices[0].message.content == "It says hello 😀."
    assert first.usage and second.usage and second.usage.prompt_tokens_details
    known = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_tokens_details.cached_tokens == known, "only what is new is computed"


def test_second_turn_of_a_long_history_computes_what_is_new(replay: Replay) -> None:
    """By the client's usage and by the server's own counters."""
    running = replay(CALLING, ANSWER, context=65_536)
    long: Any = [{"role": "system", "content": "Rule: be exact. " * 3500}, *HI]
    with openai.OpenAI(base_url=running.url + "/v1", api_key="any", max_retries=0) as ai:
        first = ai.chat.completions.create(model="m", messages=long, tools=[TOOL])
        (made,) = first.choices[0].message.tool_calls or []
        assert first.usage and first.usage.prompt_tokens > 20_000 and made.type == "function"
        arguments = json.dumps(json.loads(made.function.arguments), indent=1)
        back: Any = {"id": made.id, "type": "function", "function": {"name": "read", "arguments": arguments}}
        result: Any = {"role": "tool", "tool_call_id": made.id, "content": "hello"}
        history: Any = [*long, {"role": "assistant", "tool_calls": [back]}, result]
        second = ai.chat.completions.create(model="m", messages=history, tools=[TOOL])
    known = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage and second.usage.prompt_tokens_details
    assert second.usage.prompt_tokens_details.cached_tokens == known
    new = second.usage.prompt_tokens - known
    assert 0 < new < 100
    counted = call(running.port, "GET", "/metrics").text
    assert f'dsv4_prompt_tokens_total{{source="cache"}} {known}\n' in counted
    assert f'dsv4_prompt_tokens_total{{source="compute"}} {first.usage.prompt_tokens + new}\n' in counted


def test_openai_stream(client: Callable[..., openai.OpenAI]) -> None:
    ai = client(ANSWER)
    with ai.chat.completions.stream(model="m", messages=HI, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "It says hello 😀."
    assert final.choices[0].message.model_extra == {"reasoning_content": "now I know"}
    assert final.usage is not None and final.usage.completion_tokens > 5


def test_openai_streamed_calls(client: Callable[..., openai.OpenAI]) -> None:
    with client(CALLING).chat.completions.stream(model="m", messages=HI, tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls and json.loads(calls[0].function.arguments) == {"path": "a.txt"}


def test_openai_json(client: Callable[..., openai.OpenAI]) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    ai = client({"content": '{"a": 5}'}, {"content": "no JSON"})
    good = ai.chat.completions.create(model="m", messages=HI, response_format=form)
    assert json.loads(good.choices[0].message.content or "") == {"a": 5}
    with pytest.raises(openai.BadRequestError, match="does not allow"):
        ai.chat.completions.create(model="m", messages=HI, response_format=form)


def test_openai_responses(client: Callable[..., openai.OpenAI]) -> None:
    ai = client(CALLING, ANSWER)
    tool: Any = {"type": "function", "name": "read", "parameters": PARAMETERS, "strict": True}
    with ai.responses.stream(model="m", input="What is in a.txt?", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert kinds[-1] == "response.completed" and first.usage
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"path": "a.txt"}
    history: Any = [
        {"role": "user", "content": "What is in a.txt?"},
        *[item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "hello"},
    ]
    second = ai.responses.create(model="m", input=history, tools=[tool])
    assert second.output_text == "It says hello 😀." and second.usage
    known = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens_details.cached_tokens == known


def test_openai_text_completion(client: Callable[..., openai.OpenAI]) -> None:
    ai = client({"raw": "\n    return x"})
    done = ai.completions.create(model="m", prompt="def f(x):", suffix="\n\nprint(f(1))", max_tokens=50)
    assert done.choices[0].text == "\n    return x"
    pieces = ai.completions.create(model="m", prompt="def f(x):", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "\n    return x"


def test_openai_errors(client: Callable[..., openai.OpenAI]) -> None:
    ai = client(ANSWER, {"content": "half", "error": "the script fails here"}, context=100)
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model="m", messages=[{"role": "user", "content": "x " * 500}])
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        ai.chat.completions.create(model="m", messages=HI, temperature=7)
    assert ai.models.retrieve("other").id == "other"
    assert [model.id for model in ai.models.list()] == ["dsv4-demo"]
    assert ai.chat.completions.create(model="m", messages=HI).choices[0].message.content
    with pytest.raises(openai.APIError, match="the script fails here"):
        for _ in ai.chat.completions.create(model="m", messages=HI, stream=True):
            pass


def test_openai_leaves(replay: Replay) -> None:
    running = replay({"content": "word " * 2000, "tokens_per_second": 100})
    with openai.OpenAI(base_url=running.url + "/v1", api_key="any", max_retries=0) as ai:
        stream = ai.chat.completions.create(model="m", messages=HI, stream=True)
        next(iter(stream))
        assert running.worker.stats().active == 1
        stream.close()
        assert until(lambda: running.worker.stats().active == 0, 3)
        with pytest.raises(openai.APITimeoutError):
            ai.with_options(timeout=0.3).chat.completions.create(model="m", messages=HI)
        assert until(lambda: running.worker.stats().active == 0, 3)
    assert running.worker.stats().finished["cancelled"] == 2


def test_openai_many_at_once(replay: Replay) -> None:
    running = replay({"content": "same words", "tokens_per_second": 200})

    async def all_of_them() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="any", max_retries=0) as ai:
            asked = [ai.chat.completions.create(model="m", messages=HI) for _ in range(12)]
            return [one.choices[0].message.content for one in await asyncio.gather(*asked)]

    assert asyncio.run(all_of_them()) == ["same words"] * 12


def test_anthropic_tool_loop(claude: Callable[..., anthropic.Anthropic]) -> None:
    ai = claude(CALLING, ANSWER)
    tool: Any = {"name": "read", "input_schema": PARAMETERS}
    first = ai.messages.create(model="m", max_tokens=1000, messages=HI, tools=[tool])
    assert first.stop_reason == "tool_use"
    thinking, use = first.content
    assert thinking.type == "thinking" and thinking.signature and use.type == "tool_use"
    assert use.input == {"path": "a.txt"}
    result: Any = {
        "type": "tool_result",
        "tool_use_id": use.id,
        "content": [{"type": "text", "text": "hello"}],
    }
    history: Any = [
        *HI,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    with ai.messages.stream(model="m", max_tokens=1000, messages=history, tools=[tool]) as stream:
        text = "".join(stream.text_stream)
        second = stream.get_final_message()
    assert text == "It says hello 😀." and second.stop_reason == "end_turn"
    known = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.cache_read_input_tokens == known
    counted = ai.messages.count_tokens(model="m", messages=history, tools=[tool]).input_tokens
    assert counted == second.usage.input_tokens + known


def test_anthropic_streamed_calls(claude: Callable[..., anthropic.Anthropic]) -> None:
    tool: Any = {"name": "read", "input_schema": PARAMETERS}
    with claude(CALLING).messages.stream(model="m", max_tokens=1000, messages=HI, tools=[tool]) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "tool_use"]
    assert final.content[1].type == "tool_use" and final.content[1].input == {"path": "a.txt"}


def test_anthropic_json(claude: Callable[..., anthropic.Anthropic]) -> None:
    ai = claude({"reasoning": "hm", "content": '{"city":"Oslo","height":23}'}, {"content": "no JSON"})
    asked: Any = {"model": "m", "max_tokens": 1000, "messages": HI}
    parsed = ai.messages.parse(**asked, output_format=City)
    assert parsed.parsed_output == City(city="Oslo", height=23)
    with pytest.raises(anthropic.BadRequestError, match="does not allow"):
        ai.messages.parse(**asked, output_format=City)
    with ai.messages.stream(**asked, output_format=City) as stream:
        final = stream.get_final_message()
    assert final.parsed_output == City(city="Oslo", height=23) and final.stop_reason == "end_turn"
    schema: Any = {
        "type": "json_schema",
        "schema": {**City.model_json_schema(), "additionalProperties": False},
    }
    forms: list[Any] = [{"output_config": {"format": schema}}, {"extra_body": {"output_format": schema}}]
    for form in forms:
        with pytest.raises(anthropic.BadRequestError, match="does not allow"):
            ai.messages.create(**asked, **form)
        made = ai.messages.create(**asked, **form)
        assert json.loads(next(b.text for b in made.content if b.type == "text"))["city"] == "Oslo"
    refused: Any = {"format": {"type": "json_schema", "schema": {"type": "string", "pattern": "(?=x)y"}}}
    with pytest.raises(anthropic.BadRequestError, match="pattern"):
        ai.messages.create(**asked, output_config=refused)


def test_anthropic_errors(claude: Callable[..., anthropic.Anthropic]) -> None:
    ai = claude(ANSWER, {"content": "half", "error": "the script fails here"}, context=100)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 100 maximum"):
        ai.messages.create(model="m", max_tokens=10, messages=[{"role": "user", "content": "x " * 500}])
    assert [model.id for model in ai.models.list()] == ["dsv4-demo"]
    ai.messages.create(model="m", max_tokens=10, messages=HI)
    with (
        pytest.raises(anthropic.APIStatusError, match="the script fails here"),
        ai.messages.stream(model="m", max_tokens=100, messages=HI) as stream,
    ):
        for _ in stream:
            pass


def test_anthropic_leaves(replay: Replay) -> None:
    running = replay({"content": "word " * 2000, "tokens_per_second": 100})
    with anthropic.Anthropic(base_url=running.url, api_key="any", max_retries=0) as ai:
        with ai.messages.stream(model="m", max_tokens=5000, messages=HI) as stream:
            next(iter(stream.text_stream))
        began = time.monotonic()
        assert until(lambda: running.worker.stats().active == 0, 3) and time.monotonic() - began < 3
