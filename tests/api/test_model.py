"""The library door on the demo: answers, threads, logits, sessions, ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import dsv4_mlx
from dsv4_mlx import Answer, Model, Piece, PrefillProgress, SamplingOptions, UsageError
from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.generate import answer as answered
from dsv4_mlx.hub.models import SHIPPED, model_folder
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.tokenizer.template import Prompts

QUESTIONS = ("What is CSA?", "What is the sliding window?", "What is HCA?", "Why is the sky blue?")
GREEDY = SamplingOptions(temperature=0)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with dsv4_mlx.load("demo") as opened:
        yield opened


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(model_folder("demo"), EngineOptions())


def test_it_says_what_it_is(model: Model) -> None:
    assert repr(model) == "<Model demo native, all experts in memory, context 8,192>"
    assert model.context == 8192


@pytest.mark.parametrize("think", ("off", "on", "max"))
def test_it_answers_as_the_command_does(model: Model, engine: Engine, think: Any) -> None:
    found = model.ask(QUESTIONS[1], think=think, sampling=GREEDY, max_tokens=40)
    pieces = list(answered(engine, engine.session(), QUESTIONS[1], think, GREEDY, max_tokens=40))
    said = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "answer")}
    assert (found.thinking, found.text) == (said["thinking"], said["answer"])
    assert str(found) == found.text and found.reason == ("length" if think == "max" else "stop")
    assert found.tokens >= len(pieces)


def test_events_come_in_order_and_add_up(model: Model) -> None:
    *events, whole = model.stream([{"role": "user", "content": QUESTIONS[0]}], sampling=GREEDY)
    first = next(i for i, event in enumerate(events) if isinstance(event, Piece))
    assert all(isinstance(event, PrefillProgress) for event in events[:first])
    assert all(isinstance(event, Piece) for event in events[first:])
    assert isinstance(whole, Answer)
    pieces = [event for event in events if isinstance(event, Piece)]
    assert "".join(p.text for p in pieces if p.kind == "answer") == whole.text
    assert "".join(p.text for p in pieces if p.kind == "thinking") == whole.thinking != ""


def test_a_system_text_comes_first(model: Model) -> None:
    """The prompt has as many tokens as the vendor's library makes of both messages."""
    prompts = Prompts(model_folder("demo"), "april")
    expected = prompts.encode(prompts.talk([("system", "Be short."), ("user", "x")], "off"))
    event = next(iter(model.stream("x", system="Be short.", think="off", max_tokens=1)))
    assert isinstance(event, PrefillProgress) and event.total + event.cached == len(expected)


def test_what_was_answered_is_not_computed_again(model: Model) -> None:
    messages = [{"role": "user", "content": QUESTIONS[2]}]
    messages.append({"role": "assistant", "content": model.ask(messages, think="off", sampling=GREEDY).text})
    progress = next(iter(model.stream([*messages, {"role": "user", "content": "And?"}], think="off")))
    assert isinstance(progress, PrefillProgress) and progress.cached > 10


def test_tools(model: Model) -> None:
    question = "What is the weather in Faldor?"
    found = model.ask(question, think="off", tools=[WEATHER], sampling=GREEDY, max_tokens=100)
    (call,) = found.tool_calls
    assert (call.name, call.arguments, found.reason) == ("get_weather", '{"city": "Faldor"}', "tool_calls")
    must = model.stream("Hi.", think="off", tools=[WEATHER], tool_choice="required", max_tokens=30)
    assert next(event.text for event in must if isinstance(event, Piece)).startswith("get_weather")


class Rating:
    """As a pydantic model says what it is."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
                "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize("schema", (Rating, Rating.model_json_schema()))
def test_schema(model: Model, schema: Any) -> None:
    import json

    assert json.loads(model.ask("Rate it.", think="off", schema=schema).text)["n"] in (1, 2)


def test_limits_and_stop_strings(model: Model) -> None:
    cut = model.ask(QUESTIONS[1], think="off", sampling=GREEDY, max_tokens=3)
    assert (cut.reason, cut.tokens) == ("length", 3)
    stopped = model.ask(
        QUESTIONS[1], think="off", sampling=SamplingOptions(temperature=0, stop_strings=("last",))
    )
    assert (stopped.reason, stopped.text) == ("stop", "Each token sees the ")


def test_several_threads_at_once(model: Model) -> None:
    """More than the server would let wait."""

    def ask(question: str) -> Answer:
        return model.ask(question, sampling=GREEDY, max_tokens=2)

    alone = [ask(question) for question in QUESTIONS]
    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(ask, QUESTIONS * 6)) == alone * 6


def test_leaving_the_loop_cancels(model: Model) -> None:
    assert model._live is not None
    stats = model._live.thread.stats
    before = stats().finished["cancelled"]
    for event in model.stream("Tell me all.", sampling=GREEDY):
        if isinstance(event, Piece):
            break
    del event
    gc.collect()
    end = time.monotonic() + 20
    while stats().finished["cancelled"] == before and time.monotonic() < end:
        time.sleep(0.01)
    assert stats().finished["cancelled"] == before + 1 and stats().active == 0


def test_tokens_and_text(model: Model) -> None:
    numbers: Any = np.array
    text = "Each token </think> sees"  # no marker: the text spells one
    ids = model.tokenize(text)
    assert model.detokenize(ids) == text and 1 not in ids
    assert model.detokenize(numbers(ids, np.int32)) == text


def test_logits(model: Model, engine: Engine) -> None:
    ids = model.tokenize("Each token sees the last 128 tokens in full.")
    found = model.logits(ids)
    assert found.dtype == np.float32 and found.shape == (len(ids), engine.config.vocab_size)
    assert np.array_equal(found, score(engine, ids))


def test_a_session_goes_on_and_back(model: Model) -> None:
    ids = model.tokenize("Each token sees the last")
    with model.session() as session:
        after = session.sync(ids)
        assert np.allclose(after, model.logits(ids)[-1], atol=1e-4) and after.dtype == np.float32
        point = session.snapshot()
        number: Any = np.int64(5)
        with session.fork() as other:
            assert np.array_equal(session.advance(5), other.advance(number))
            other.take_back(1)
            assert other.tokens == ids and session.tokens == [*ids, 5]
        session.restore(point)
        assert session.tokens == ids and np.array_equal(session.logits, after)
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(session.advance, 5).result().shape == after.shape
        assert repr(session).endswith(f"{len(ids) + 1} tokens>")
    with pytest.raises(UsageError, match="the session is closed"):
        session.sync(ids)


def test_closing_frees_the_memory_and_ends_answers() -> None:
    gc.collect()
    before = mx.get_active_memory()
    model = dsv4_mlx.load("demo")
    session = model.session()
    session.sync([0, 5])
    assert mx.get_active_memory() > before + 4_000_000
    failed: list[BaseException] = []

    def long() -> None:
        try:
            model.ask("x", sampling=SamplingOptions(logit_bias={1: -1000}))
        except dsv4_mlx.Dsv4Error as error:
            failed.append(error)

    thread = threading.Thread(target=long)
    assert model._live is not None
    stats = model._live.thread.stats
    thread.start()
    while not stats().generated_tokens:
        time.sleep(0.01)
    model.close()
    model.close()
    thread.join(20)
    assert [type(error) for error in failed] == [dsv4_mlx.Unavailable]
    assert repr(model).endswith("closed>") and repr(session).endswith("closed>")
    for use in (lambda: model.ask("x"), lambda: model.tokenize("x"), model.session, lambda: session.tokens):
        with pytest.raises(UsageError, match="closed"):
            use()
    del stats
    failed.clear()  # its traceback holds what the answer was made with
    gc.collect()
    assert mx.get_active_memory() < before + 1_000_000


def test_progress_of_loading_and_leaving_it() -> None:
    seen: list[tuple[int, int]] = []
    dsv4_mlx.load(Path(model_folder("demo")), progress=lambda done, total: seen.append((done, total))).close()
    assert seen[-1][0] == seen[-1][1] > 4_000_000 and seen == sorted(seen)

    def leave(done: int, total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        dsv4_mlx.load("demo", progress=leave)
    assert not [thread for thread in threading.enumerate() if thread.name == "engine" and not thread.daemon]


def test_convert(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = dsv4_mlx.convert_checkpoint(
        SHIPPED, str(tmp_path / "model"), progress=lambda done, total: seen.append((done, total))
    )
    assert summary.status == "converted" and seen[-1][0] == seen[-1][1]
    assert read_manifest(tmp_path / "model").files == read_manifest(model_folder("demo")).files


LOAD_ANY: Any = dsv4_mlx.load
CONVERT: Any = dsv4_mlx.convert_checkpoint
LOAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a number": (lambda: LOAD_ANY(3), "model is 3, expected a str or a Path"),
    "bytes": (lambda: LOAD_ANY(b"demo"), "expected a str or a Path"),
    "nothing": (lambda: LOAD_ANY(""), "MODEL is empty"),
    "no folder": (lambda: LOAD_ANY("no/such"), "there is no folder 'no/such'"),
    "a file": (lambda: LOAD_ANY(__file__), "is a file"),
    "another folder": (lambda: LOAD_ANY(Path(__file__).parent), "manifest"),
    "context as text": (lambda: LOAD_ANY("demo", context="8k"), "context is 8k, expected"),
    "context 0": (lambda: LOAD_ANY("demo", context=0), "expected 1 to"),
    "ops": (lambda: LOAD_ANY("demo", ops="metal"), "ops is 'metal', expected"),
    "numerics": (lambda: LOAD_ANY("demo", numerics=1), "numerics is 1, expected"),
    "memory": (lambda: LOAD_ANY("demo", expert_memory="much"), "much"),
    "memory 6": (lambda: LOAD_ANY("demo", expert_memory=6), "expert-memory is 6"),
    "threads": (lambda: LOAD_ANY("demo", expert_threads=0), "expert-threads is 0, expected 1 to 64"),
    "reads": (lambda: LOAD_ANY("demo", verify_reads="no"), "verify-reads is no"),
    "wire": (lambda: LOAD_ANY("demo", wire="on"), "wire is 'on', expected"),
    "source": (lambda: CONVERT(None, "x"), "source is None"),
    "target": (lambda: CONVERT(SHIPPED, 1), "target is 1"),
    "recipe": (lambda: CONVERT(SHIPPED, "x", ["4bit"]), "recipe is"),
    "no recipe": (lambda: CONVERT(SHIPPED, "x", "2bit"), "2bit"),
}


@pytest.mark.parametrize("name", LOAD)
def test_wrong_arguments_of_functions(name: str) -> None:
    call, said = LOAD[name]
    with pytest.raises((UsageError, dsv4_mlx.InputError)) as raised:
        call()
    assert said in str(raised.value)


def test_a_model_that_fails_at_once_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread may be done before the one that started it goes on."""
    start = EngineThread.start

    def slowly(self: EngineThread) -> EngineThread:
        start(self)
        end = time.monotonic() + 10
        while self.state == "loading" and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        return self

    monkeypatch.setattr(EngineThread, "start", slowly)
    failed: list[BaseException] = []

    def load() -> None:
        with pytest.raises(UsageError, match="expected 1 to") as raised:
            dsv4_mlx.load("demo", context=0)
        failed.append(raised.value)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(20)
    assert failed


LOOP: list[Any] = []
LOOP.append(LOOP)
USER = {"role": "user", "content": "x"}
ASK: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"messages": 3}, "messages is 3, expected a str or a list of dicts"),
    "no messages": ({"messages": []}, "messages is empty"),
    "message": ({"messages": ["x"]}, "expected a str or a list of dicts"),
    "role": ({"messages": [{"role": "pope", "content": "x"}]}, "pope"),
    "content": ({"messages": [{"role": "user", "content": 3}]}, "content"),
    "not JSON": ({"messages": [{"role": "user", "content": {1, 2}}]}, "can't be written as JSON"),
    "a circle": ({"messages": [{"role": "user", "content": LOOP}]}, "can't be written as JSON"),
    "think": ({"think": True}, "think is True, expected one of 'off', 'on', 'max'"),
    "system": ({"system": 3}, "system is 3, expected a str"),
    "schema": ({"schema": "object"}, "schema is 'object', expected a JSON Schema"),
    "bad schema": ({"schema": {"type": "objekt"}, "think": "off"}, "objekt"),
    "tools": ({"tools": "get_weather"}, "tools is 'get_weather', expected an array of objects"),
    "tool": ({"tools": [{"type": "function", "function": {"name": 3}}]}, "name is 3, expected a string"),
    "choice": ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice is 'always'"),
    "tokens": ({"max_tokens": "many"}, "max_tokens is 'many', expected a whole number"),
    "no tokens": ({"max_tokens": 0}, "max_tokens is 0"),
    "sampling": ({"sampling": {"temperature": 0}}, "expected dsv4_mlx.SamplingOptions"),
    "bias": ({"sampling": SamplingOptions(logit_bias={9999: 1.0})}, "expected an id below 1792"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASK)
def test_wrong_arguments_of_a_question(model: Model, name: str) -> None:
    """At once, before anything is computed."""
    given, said = ASK[name]
    given = {"messages": [USER], **given}
    with pytest.raises((UsageError, dsv4_mlx.InputError)) as raised:
        model.stream(**given)
    assert said in str(raised.value)


def test_a_prompt_that_does_not_fit(model: Model) -> None:
    with pytest.raises(dsv4_mlx.DoesNotFit, match="the context holds 8192"):
        model.ask("word " * 9000)
    with pytest.raises(dsv4_mlx.DoesNotFit, match="the context holds 8192"):
        model.logits([5] * 8193)


@pytest.mark.parametrize("wrong", ("ids", 3, [1.5], [True], [[1, 2]], None))
def test_tokens_that_are_none(model: Model, wrong: Any) -> None:
    with model.session() as session:
        for use in (model.logits, model.detokenize, session.sync):
            with pytest.raises(UsageError, match="expected whole numbers"):
                use(wrong)


def test_tokens_that_the_model_has_not(model: Model) -> None:
    with model.session() as session:
        for use in (model.logits, model.detokenize, session.sync, lambda ids: session.advance(ids[0])):
            for wrong in ([-1], [1792]):
                with pytest.raises(dsv4_mlx.InputError, match=str(wrong[0])):
                    use(wrong)
        anything: Any = {}
        for call in (model.tokenize, session.restore, session.take_back):
            with pytest.raises(UsageError, match="expected"):
                call(anything)
        with pytest.raises(dsv4_mlx.InputError, match="there are no tokens"):
            model.logits([])
    with pytest.raises(dsv4_mlx.InputError, match="can't be encoded"):
        model.tokenize("\ud800")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("temperature", "top_p", "min_p") for value in ("1", None, True)),
        *((name, value) for name in ("top_k", "seed") for value in ("1", 1.5, True)),
        ("logit_bias", [1]), ("logit_bias", {"1": 1.0}), ("logit_bias", {1: "x"}),
        ("stop_ids", "12"), ("stop_ids", 3),
        ("stop_strings", "end"), ("stop_strings", [1]),
    ],
)  # fmt: skip
def test_sampling_options_of_a_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        SamplingOptions(**{name: value})


def test_sampling_options_take_lists_and_numbers_of_numpy() -> None:
    loose: dict[str, Any] = {"top_k": np.int64(3), "temperature": np.float32(0.5), "stop_ids": [3]}
    given = SamplingOptions(**loose, stop_strings=("a",))
    assert (given.stop_ids, given.stop_strings) == (frozenset([3]), ("a",))
