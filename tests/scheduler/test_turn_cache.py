"""Exact turns: an agent's next request continues what was sampled, token by token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from checkpoints import Checkpoints
from deepseek_recipe import (
    AssistantMessage,
    Conversation,
    Message,
    SystemMessage,
    ToolCall,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv4_mlx.engine.decode import PrefillProgress
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import ModelBackend
from dsv4_mlx.scheduler.replay import ReplayBackend
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.scheduler import Scheduler
from dsv4_mlx.scheduler.turn_cache import Call, Completion, TurnCache
from dsv4_mlx.tokenizer.template import Prompts
from scheduler.test_replay import message, run, turn

DEMO = SHIPPED
TOOL = ToolDefinition("ls", "List files", {"type": "object"})
# Spelled as no renderer would: no space after the colon, a number with a zero too many, text in odd tokens.
SAMPLED = (
    'I l ook</think>Here\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="ls">\n'
    '<｜DSML｜parameter name="n" string="false">{"a":1.50}</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
ARGUMENTS = '{"n": {"a": 1.5}}'
ASKED: list[Message] = [SystemMessage("You are an agent."), UserMessage("What is here?")]


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(DEMO, "april")


def conversation(*messages: Message, **more: Any) -> Conversation:
    return Conversation([*ASKED, *messages], **{"tools": [TOOL], "reasoning_effort": "low", **more})


class Told:
    """One sampled turn, remembered; and what clients make of it."""

    def __init__(self, prompts: Prompts, turns: TurnCache | None = None) -> None:
        self.turns = turns or TurnCache(prompts)
        self.prompt = prompts.encode(conversation())
        self.sampled = prompts.tokenizer.encode(SAMPLED)
        self.handle = self.turns.handle()
        self.end = prompts.markers.end
        said = Completion("I l ook", "Here", (Call("call_1", "ls", ARGUMENTS),))
        self.turns.remember(self.prompt, self.sampled, said, self.handle)

    @property
    def exact(self) -> list[int]:
        return [*self.prompt, *self.sampled, self.end]

    def back(self, *more: Message, **other: Any) -> tuple[Message, ...]:
        known: dict[str, Any] = {
            "content": "Here",
            "reasoning": "I l ook",
            "id": "call_1",
            "name": "ls",
            "arguments": ARGUMENTS,
            **other,
        }
        call = ToolCall(known["id"], known["name"], known["arguments"])
        answer = AssistantMessage(known["content"], known["reasoning"], [call])
        return answer, ToolMessage("a b c", known["id"]), *more


@pytest.mark.parametrize(
    ("other", "recovered"),
    [
        ({}, 0),
        ({"content": ""}, 0),
        ({"content": "Here\n"}, 0),
        ({"reasoning": ""}, 1),
        ({"reasoning": None}, 1),
        ({"reasoning": None, "content": ""}, 1),
        ({"arguments": '{"n":{"a":1.5}}'}, 0),
        ({"arguments": '{ "n" : { "a" : 1.50 } }'}, 0),
    ],
)
def test_what_clients_send_back_is_what_was_sampled(
    prompts: Prompts, other: dict[str, Any], recovered: int
) -> None:
    told = Told(prompts)
    found = told.turns.render(conversation(*told.back(**other)))
    assert list(found.ids[: len(told.exact)]) == told.exact
    assert (found.spliced, found.recovered) == (1, recovered)
    rendered = prompts.encode(conversation(*told.back()))
    assert rendered[: len(told.exact)] != told.exact, "else this test shows nothing"
    after = rendered[rendered.index(told.end) + 1 :]
    assert list(found.ids[len(told.exact) :]) == after, "what follows is rendered as ever"


@pytest.mark.parametrize(
    "other",
    [
        {"content": "There"},
        {"reasoning": "I guess"},
        {"arguments": '{"n": {"a": 1.6}}'},
        {"arguments": '{"n": {"a": 1.5}, "m": 0}'},
        {"arguments": '{"n": '},
        {"name": "dir"},
        {"id": "call_2"},
    ],
)
def test_what_a_client_changed_is_its_own_text(prompts: Prompts, other: dict[str, Any]) -> None:
    told = Told(prompts)
    changed = conversation(*told.back(**other))
    found = told.turns.render(changed)
    assert (list(found.ids), found.spliced) == (prompts.encode(changed), 0)


def test_calls_of_two_turns_or_twice_are_not_spliced(prompts: Prompts) -> None:
    told = Told(prompts)
    other = Completion("", "", (Call("call_2", "ls", "{}"),))
    told.turns.remember(told.prompt, told.sampled, other)
    both = AssistantMessage("", "", [ToolCall("call_1", "ls", ARGUMENTS), ToolCall("call_2", "ls", "{}")])
    for wrong in ((both,), (*told.back(), *told.back())):
        assert told.turns.render(conversation(*wrong)).spliced == 0


def test_a_turn_without_calls_is_known_by_its_place(prompts: Prompts) -> None:
    """Or by its handle: then even after another prompt, such as one whose system text has moved on."""
    turns = TurnCache(prompts)
    prompt = prompts.encode(conversation())
    sampled = prompts.tokenizer.encode("th ought</think>Don e")
    handle = turns.handle()
    turns.remember(prompt, sampled, Completion("th ought", "Don e"), handle)
    exact = [*prompt, *sampled, prompts.markers.end]
    for reasoning in ("th ought", "", None):
        back = (AssistantMessage("Don e", reasoning), UserMessage("More"))
        assert list(turns.render(conversation(*back)).ids[: len(exact)]) == exact
    moved = Conversation(
        [SystemMessage("Tuesday."), *ASKED, AssistantMessage("Don e"), UserMessage("More")], tools=[TOOL]
    )
    assert turns.render(moved).spliced == 0
    assert turns.render(moved, {3: handle}).spliced == 1
    assert turns.render(moved, {3: handle[1:]}).spliced == 0
    assert len({turns.handle() for _ in range(100)}) == 100
    assert turns.render(moved, {3: TurnCache(prompts).handle()}).spliced == 0
    assert turns.render(moved, {3: "é.\ud800"}).spliced == 0


def test_reasoning_that_the_template_drops_stays_dropped(prompts: Prompts) -> None:
    """Without tools, a new question drops the reasoning of earlier answers: no splice may bring it back."""
    turns = TurnCache(prompts)
    asked = Conversation(ASKED, reasoning_effort="low")
    prompt = prompts.encode(asked)
    turns.remember(prompt, prompts.tokenizer.encode("th ought</think>Done"), Completion("th ought", "Done"))
    for reasoning in ("th ought", "", None):
        history = Conversation(
            [*ASKED, AssistantMessage("Done", reasoning), UserMessage("More")], reasoning_effort="low"
        )
        found = turns.render(history)
        assert (list(found.ids), found.spliced) == (prompts.encode(history), 0)


def test_a_turn_without_thinking_comes_back_without(prompts: Prompts) -> None:
    turns = TurnCache(prompts)
    prompt = prompts.encode(conversation(thinking_mode=False))
    sampled = prompts.tokenizer.encode("Don e")
    turns.remember(prompt, sampled, Completion("", "Don e"))
    exact = [*prompt, *sampled, prompts.markers.end]
    for reasoning in ("", None):
        for think in (False, True):
            back = conversation(AssistantMessage("Don e", reasoning), UserMessage("m"), thinking_mode=think)
            expected = exact if prompts.encode(conversation(thinking_mode=think))[:-1] == prompt[:-1] else []
            assert list(turns.render(back).ids[: len(expected)]) == expected


def test_several_turns_are_spliced_together(prompts: Prompts) -> None:
    told = Told(prompts)
    first = told.back()
    second_prompt = told.turns.render(conversation(*first)).ids
    sampled = prompts.tokenizer.encode("mo re</think>Al l done")
    told.turns.remember(second_prompt, sampled, Completion("mo re", "Al l done"))
    bare = told.back(reasoning="")
    found = told.turns.render(conversation(*bare, AssistantMessage("Al l done", ""), UserMessage("Thanks")))
    exact = [*second_prompt, *sampled, told.end]
    assert (list(found.ids[: len(exact)]), found.spliced, found.recovered) == (exact, 2, 2)


def test_a_prefix_that_is_to_be_continued_is_left_alone(prompts: Prompts) -> None:
    told = Told(prompts)
    begun = conversation(AssistantMessage("Here", "I l ook", prefix=True))
    assert told.turns.render(begun).ids == tuple(prompts.encode(begun))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=TEXT, reasoning=TEXT)
def test_any_text_comes_back_as_it_was_sampled(prompts: Prompts, content: str, reasoning: str) -> None:
    """Whatever the tokens were: here each character by itself, as no encoder would choose."""
    asked = [UserMessage("q")]
    turns, prompt = TurnCache(prompts), prompts.encode(Conversation(asked, tools=[TOOL]))
    pieces = [prompts.tokenizer.encode(c) for c in reasoning] + [[prompts.markers.end_think]]
    pieces += [prompts.tokenizer.encode(c) for c in content]
    sampled = [token for piece in pieces for token in piece]
    turns.remember(prompt, sampled, Completion(reasoning, content))
    back = [*asked, AssistantMessage(content, reasoning), UserMessage("next")]
    found = turns.render(Conversation(back, tools=[TOOL]))
    exact = [*prompt, *sampled, prompts.markers.end]
    assert list(found.ids[: len(exact)]) == exact


def test_memory_is_bounded(prompts: Prompts) -> None:
    turns = TurnCache(prompts, most=3)
    prompt = prompts.encode(conversation())
    for i in range(5):
        turns.remember(prompt, [300 + i, 301], Completion("", "", (Call(f"call_{i}", "ls", "{}"),)))
    known = []
    for i in range(5):
        back = AssistantMessage("", "", [ToolCall(f"call_{i}", "ls", "{}")])
        known.append(turns.render(conversation(back, ToolMessage("x", f"call_{i}"))).spliced)
    assert known == [0, 0, 1, 1, 1] and len(turns._by_key) <= 3 * 2
    large = TurnCache(prompts, size=20_000)
    for i in range(50):
        large.remember(prompt, [300] * 1000, Completion("", str(i), ()))
    assert large._taken <= 20_000 and len(large._turns) == len(set(large._by_key.values())) <= 4


def test_an_agents_second_turn_prefills_only_what_is_new(checkpoints: Checkpoints) -> None:
    """20,000 tokens of history: instructions, a question, a tool call spelled in the model's own way."""
    backend = ReplayBackend(checkpoints.official("small"), [turn(raw=SAMPLED), turn(content="done")], 65_536)
    backend.open(lambda done, total: None)
    runner, turns = Scheduler(backend, SchedulerOptions()), TurnCache(backend.prompts)
    long: list[Message] = [SystemMessage("Rule: be exact. " * 1900), UserMessage("What is here?")]
    asked = Conversation(long, tools=[TOOL])
    prompt = turns.render(asked).ids
    assert len(prompt) >= 20_000
    first = run(runner, GenerationRequest(prompt))
    found = message(runner, asked, first.tokens)
    calls = [Call("call_9", name, arguments) for name, arguments in found["calls"]]
    turns.remember(prompt, first.tokens, Completion(found["reasoning"], found["content"], tuple(calls)))
    side = Conversation([UserMessage("A title, please")], thinking_mode=False)
    run(runner, GenerationRequest(turns.render(side).ids))
    again = json.dumps(json.loads(calls[0].arguments), indent=1)
    back = [
        AssistantMessage(found["content"], None, [ToolCall("call_9", "ls", again)]),
        ToolMessage("a.txt\nb.txt", "call_9"),
    ]
    second_prompt = turns.render(Conversation([*long, *back], tools=[TOOL]))
    assert (second_prompt.spliced, second_prompt.recovered) == (1, 1)
    second = run(runner, GenerationRequest(second_prompt.ids))
    known = len(prompt) + len(first.tokens)
    cached = next(event.cached for event in second.events if isinstance(event, PrefillProgress))
    assert cached == known
    new = len(second_prompt.ids) - known
    result = backend.prompts.tokenizer.encode("<tool_result>a.txt\nb.txt</tool_result>")
    assert new <= len(result) + 4, "the end of the turn, the result, and the markers of a new turn"


def test_a_real_model_goes_on_bit_equal(checkpoints: Checkpoints) -> None:
    """The spliced prompt continues the live session: the same tokens as if the session had simply gone on."""
    backend = ModelBackend(checkpoints.converted("small"), EngineOptions(context=4096))
    loaded: list[tuple[int, int]] = []
    backend.open(lambda done, total: loaded.append((done, total)))
    assert loaded and loaded[-1][0] == loaded[-1][1]
    runner, turns = Scheduler(backend, SchedulerOptions()), TurnCache(backend.prompts)
    asked = Conversation([UserMessage("Why?")], thinking_mode=False)
    prompt = turns.render(asked).ids
    markers = backend.prompts.markers
    sampling = SamplingOptions(seed=3, logit_bias={markers.end: -900.0, markers.assistant: -900.0})
    first = run(runner, GenerationRequest(prompt, sampling, 12))
    found = message(runner, asked, first.tokens)
    turns.remember(prompt, first.tokens, Completion("", found["content"]))
    back = (UserMessage("Why?"), AssistantMessage(found["content"]), UserMessage("And?"))
    following = turns.render(Conversation(back, thinking_mode=False))
    assert following.spliced == 1
    second = run(runner, GenerationRequest(following.ids, sampling, 8))
    assert second.cached == len(prompt) + 12
    session = backend.session()
    assert list(generate(session, list(prompt), sampling, max_tokens=12)) == first.tokens
    assert list(generate(session, list(following.ids), sampling, max_tokens=8)) == second.tokens
    assert backend.memory()["active"] > 0
    limits = backend.limits(4)
    assert limits.budget >= limits.cost(backend.context) > limits.cost(1) > 0
