"""Scripts: what is refused, and that what is said has the tokens a model would have sampled."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deepseek_recipe import (
    AssistantMessage,
    ChatCompletionRequest,
    Conversation,
    ConversationRequest,
    InferenceChunk,
    InferenceFinishReason,
    ModelVersion,
    ParsingOptions,
    StreamProcessor,
    ThinkingInitialStage,
    ToolCall,
    ToolDefinition,
    UserMessage,
)

from dsv4_mlx.engine.decode import Finished, Token
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import InputError, MachineError, UsageError
from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.replay import ReplayBackend, ScriptedCall, ScriptedTurn, read_script
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.scheduler import RunningSequence, Scheduler
from scheduler.tiny import Heard

DEMO = SHIPPED
TOOL = ToolDefinition("ls", "List files", {"type": "object", "properties": {"path": {"type": "string"}}})
CALL = ScriptedCall("ls", '{"path": "/tmp", "depth": 3}')


def replay(*turns: ScriptedTurn, context: int | None = None) -> Scheduler:
    backend = ReplayBackend(DEMO, turns, context)
    backend.open(lambda done, total: None)
    return Scheduler(backend, SchedulerOptions())


def turn(**keys: Any) -> ScriptedTurn:
    return ScriptedTurn("line 1", **keys)


def say(one: Scheduler, conversation: Conversation, **more: Any) -> tuple[list[int], Heard]:
    """The prompt's ids and what the next turn says to it."""
    prompt = one.backend.prompts.encode(conversation)
    return prompt, run(one, GenerationRequest(tuple(prompt), **more))


def run(one: Scheduler, job: GenerationRequest) -> Heard:
    heard = Heard()
    one.add(RunningSequence(job, heard, one.clock()))
    while heard.end is None:
        time.sleep(one.step() or 0)
    return heard


def message(one: Scheduler, conversation: Conversation, tokens: list[int]) -> dict[str, Any]:
    """What the vendor's parser makes of sampled tokens."""
    request = ConversationRequest(conversation, ModelVersion.DeepseekV4Pro)
    generator = ChatCompletionRequest.chunk_generator(request, "id", "model")
    stage = ThinkingInitialStage.ReasoningStart if conversation.thinking_mode else None
    stream = StreamProcessor(
        generator, ParsingOptions(thinking_initial_stage=stage), one.backend.prompts.tokenizer
    )
    chunks = stream.push(InferenceChunk.ready())
    for token in tokens:
        chunks += stream.push(InferenceChunk.tokens([token]))
    chunks += stream.push(InferenceChunk.finish(InferenceFinishReason.Stop)) + stream.finish()
    found: dict[str, Any] = {"reasoning": "", "content": "", "calls": []}
    for chunk in chunks:
        for choice in json.loads(chunk.to_json())["choices"]:
            delta = choice["delta"]
            found["reasoning"] += delta.get("reasoning_content") or ""
            found["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(found["calls"]):
                    found["calls"].append([call["function"]["name"], ""])
                found["calls"][call["index"]][1] += call["function"]["arguments"]
    return found


@pytest.mark.parametrize("think", [True, False])
def test_what_is_said_is_what_a_model_would_sample(think: bool) -> None:
    """Prompt, tokens and end of sentence are together the prompt's part of a rendered history."""
    one = replay(turn(reasoning="I look.\n\nThen é 😀", content="Here it is", calls=(CALL,)))
    asked = Conversation([UserMessage("q")], tools=[TOOL], thinking_mode=think)
    prompt, heard = say(one, asked)
    answer = AssistantMessage(
        "Here it is",
        "I look.\n\nThen é 😀" if think else None,
        [ToolCall("c", CALL.name, CALL.arguments)],
    )
    history = Conversation([UserMessage("q"), answer, UserMessage("next")], tools=[TOOL], thinking_mode=think)
    ids = one.backend.prompts.encode(history)
    whole = [*prompt, *heard.tokens, one.backend.prompts.markers.end]
    assert ids[: len(whole)] == whole
    assert heard.end == Finished("stop")
    found = message(one, asked, heard.tokens)
    assert found["content"] == "Here it is"
    assert found["reasoning"] == ("I look.\n\nThen é 😀" if think else "")
    assert [(name, json.loads(args)) for name, args in found["calls"]] == [
        ("ls", {"path": "/tmp", "depth": 3})
    ]


def test_turns_come_in_order_and_begin_again() -> None:
    one = replay(turn(content="first"), turn(content="second"))
    asked = Conversation([UserMessage("q")], thinking_mode=False)
    said = [message(one, asked, say(one, asked)[1].tokens)["content"] for _ in range(5)]
    assert said == ["first", "second", "first", "second", "first"]


def test_raw_text_is_taken_as_it_is() -> None:
    raw = 'no thought</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="ls">\n'
    one = replay(turn(raw=raw, finish="length"))
    _, heard = say(one, Conversation([UserMessage("q")], tools=[TOOL]))
    assert heard.end == Finished("length")
    assert heard.tokens == one.backend.prompts.tokenizer.encode(raw)
    assert one.backend.prompts.markers.end_think in heard.tokens


def test_an_error_comes_after_what_was_said() -> None:
    one = replay(turn(content="so far", error="the machine is on fire"))
    asked = Conversation([UserMessage("q")], thinking_mode=False)
    _, heard = say(one, asked)
    assert message(one, asked, heard.tokens)["content"] == "so far"
    assert heard.end is not None and isinstance(heard.end.error, MachineError)
    assert "on fire" in str(heard.end.error)
    assert one.counts.failures == 0


def test_speed_is_as_asked() -> None:
    one = replay(turn(content="one two three four five six seven eight nine ten", tokens_per_second=50.0))
    started = time.monotonic()
    _, heard = say(one, Conversation([UserMessage("q")], thinking_mode=False))
    assert time.monotonic() - started >= (len(heard.tokens) - 1) / 50


def test_limits_and_knobs_are_the_real_ones() -> None:
    one = replay(turn(reasoning="much thought " * 20, content="answer"))
    asked = Conversation([UserMessage("q")])
    _, heard = say(one, asked, max_tokens=4)
    assert len(heard.tokens) == 4 and heard.end == Finished("length")
    knobs = SamplingOptions(temperature=0.3, top_p=0.5, frequency_penalty=2.0, repetition_penalty=1.3, seed=7)
    _, heard = say(one, asked, sampling=knobs, think_budget=5, logprobs=2)
    assert heard.tokens[5] == one.backend.prompts.markers.end_think
    assert message(one, asked, heard.tokens)["content"] == "answer"
    tokens = [event for event in heard.events if isinstance(event, Token)]
    assert all(event.logprob is not None and len(event.top) == 2 for event in tokens)
    assert tokens[0].logprob == 0.0


def test_a_constraint_that_forbids_the_script_is_an_error() -> None:
    class Nothing:
        finished = False

        def mask(self, size: int) -> Any:
            return np.arange(size) == 300

        def accept(self, token: int) -> None: ...

        def fork(self) -> Nothing:
            return self

    one = replay(turn(content="answer"))
    _, heard = say(one, Conversation([UserMessage("q")], thinking_mode=False), constraint=Nothing())
    assert heard.end is not None and isinstance(heard.end.error, InputError)
    assert "line 1" in str(heard.end.error)


def test_a_prompt_that_began_the_turn_is_not_repeated() -> None:
    one = replay(turn(calls=(CALL,)))
    forced = Conversation([UserMessage("q")], tools=[TOOL], tool_choice="required", thinking_mode=False)
    free = Conversation([UserMessage("q")], tools=[TOOL], thinking_mode=False)
    opened, rest = say(one, forced)
    prompt, whole = say(one, free)
    assert [*opened, *rest.tokens] == [*prompt, *whole.tokens] and len(rest.tokens) < len(whole.tokens)


BAD = {
    "empty": (b"\n \n", "no turns"),
    "json": (b'{"content": "a"}\n{"content": \n', "line 2"),
    "utf8": (b'{"content": "\xff"}', "not UTF-8"),
    "list": (b"[1]", "JSON list"),
    "key": (b'{"contents": "a"}', "'contents'"),
    "twice": (b'{"content": "a", "content": "b"}', "twice"),
    "type": (b'{"content": 3}', "content is no text"),
    "surrogate": (b'{"content": "\\ud800"}', "content is no text"),
    "both": (b'{"raw": "a", "content": "b"}', "raw and more"),
    "nothing": (b'{"finish": "stop"}', "says nothing"),
    "finish": (b'{"content": "a", "finish": "end"}', "'end'"),
    "speed": (b'{"content": "a", "tokens_per_second": -1}', "tokens_per_second"),
    "infinite": (b'{"content": "a", "tokens_per_second": 1e999}', "tokens_per_second"),
    "nan": (b'{"content": "a", "tokens_per_second": NaN}', "tokens_per_second"),
    "bool": (b'{"content": "a", "tokens_per_second": true}', "tokens_per_second"),
    "calls": (b'{"tool_calls": {}}', "tool_calls is no list"),
    "call": (b'{"tool_calls": [{"name": "a"}]}', "these two keys"),
    "name": (b'{"tool_calls": [{"name": "", "arguments": {}}]}', "name of a tool call"),
    "arguments": (b'{"tool_calls": [{"name": "a", "arguments": "{}"}]}', "no object"),
    "hidden": (b'{"tool_calls": [{"name": "a", "arguments": {"b": ["\\udfff"]}}]}', "hold no text"),
    "deep": (b'{"tool_calls": ' + b"[" * 100_000, "line 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_script_is_refused_by_line(name: str, tmp_path: Path) -> None:
    text, expected = BAD[name]
    file = tmp_path / "turns.jsonl"
    file.write_bytes(text)
    with pytest.raises(InputError) as refused:
        read_script(file)
    assert expected in str(refused.value) and refused.value.exit_code == 2
    assert str(file) in str(refused.value)


def test_a_missing_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_script(tmp_path / "nowhere")
    with pytest.raises(InputError, match="can't be read"):
        read_script(tmp_path)


def test_a_script_is_read(tmp_path: Path) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text(
        '{"reasoning": "r", "content": "c", "tool_calls": [{"name": "ls", "arguments": {"p": "ü"}}]}\n\n'
        '{"raw": "x</think>y", "finish": "length", "tokens_per_second": 12.5}\r\n'
        '{"error": "e"}'
    )
    assert read_script(file) == [
        ScriptedTurn(f"{file}, line 1", "r", "c", (ScriptedCall("ls", '{"p": "ü"}'),)),
        ScriptedTurn(f"{file}, line 3", raw="x</think>y", finish="length", tokens_per_second=12.5),
        ScriptedTurn(f"{file}, line 4", error="e"),
    ]


@pytest.mark.parametrize("context", [0, 10**9])
def test_an_impossible_context_is_refused(context: int) -> None:
    with pytest.raises(UsageError, match="--context"):
        replay(turn(content="a"), context=context)
