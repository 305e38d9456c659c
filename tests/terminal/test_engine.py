"""The chat and `generate` with a real engine on a small synthetic model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL, run
from typing import Any

import pytest

from dsv4_mlx.cli.chat_engine import ThreadChatEngine
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.errors import InputError
from dsv4_mlx.scheduler.backend import ModelBackend
from dsv4_mlx.synthetic import small_config, write_checkpoint
from dsv4_mlx.terminal.chat_engine import (
    AnswerPiece,
    ChatMessage,
    ChatRequest,
    Counted,
    Ended,
    EngineInfo,
    EngineOpened,
    Event,
    Failed,
    Kind,
    Loading,
    Prefilling,
    Recalled,
)
from terminal.screens import CTRL_C, CTRL_D, Person

MAIN = [sys.executable, "-m", "dsv4_mlx"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    layers = {"num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "num_hash_layers": 1}
    config = {**small_config(), **layers, "num_nextn_predict_layers": 0}
    write_checkpoint(folder / "official", config, 0)
    convert(folder / "official", folder / "converted", "native")
    return folder / "converted"


class Heard(SimpleQueue[Event]):
    """Events of an engine, which is stopped after so many prefill steps or tokens."""

    def __init__(self, prefills: int = 10**9, tokens: int = 10**9) -> None:
        self.left: dict[type[Event], int] = {Prefilling: prefills, Counted: tokens}
        self.seen: list[Event] = []
        self.stop: Callable[[], None] = lambda: None

    def put(self, event: Event, block: bool = True, timeout: float | None = None) -> None:
        super().put(event)
        if type(event) in self.left:
            self.left[type(event)] -= 1
            if not self.left[type(event)]:
                self.stop()

    def until(self, kind: type[Event]) -> Any:
        """The next event of a kind; all of them are `seen`."""
        while True:
            self.seen.append(self.get(timeout=60))
            if isinstance(self.seen[-1], kind):
                return self.seen[-1]

    @property
    def prefills(self) -> list[Prefilling]:
        return [event for event in self.seen if isinstance(event, Prefilling)]

    @property
    def said(self) -> list[tuple[Kind, str]]:
        return [(event.kind, event.text) for event in self.seen if isinstance(event, AnswerPiece)]


def reply(engine: ThreadChatEngine, asked: ChatRequest, heard: Heard) -> Ended:
    engine.events, heard.stop = heard, engine.stop
    engine.ask(asked)
    ended = heard.until(Ended)
    assert isinstance(ended, Ended) and ended.error is None
    return ended


@pytest.fixture
def opened(model: Path) -> Iterator[Callable[..., ThreadChatEngine]]:
    """opened(max_tokens, states) -> an engine whose model is loaded; closed when the test ends."""
    engines: list[ThreadChatEngine] = []

    def start(max_tokens: int, states: Path | None = None) -> ThreadChatEngine:
        backend = ModelBackend(model, EngineOptions(context=4096))
        engine = ThreadChatEngine(backend, "model", SamplingOptions(), max_tokens, states)
        engines.append(engine)
        engine.events = heard = Heard()
        engine.start()
        assert heard.until(EngineOpened).info == EngineInfo("model", 4096)
        assert any(isinstance(event, Loading) for event in heard.seen)
        return engine

    yield start
    assert all(engine.close(30) for engine in engines)


def test_a_stopped_prefill_and_a_stopped_answer_leave_a_sound_session(
    opened: Callable[..., ThreadChatEngine],
) -> None:
    # A prefill is cut where an assistant's turn opens, 256 tokens after the last cut at the earliest.
    said = (
        ChatMessage("user", "many words " * 70),
        ChatMessage("assistant", "yes"),
        ChatMessage("user", "more"),
    )
    asked = ChatRequest(said, "on", 7)
    whole = Heard()
    assert reply(opened(6), asked, whole).how == "length"
    assert len(whole.prefills) >= 2 and whole.said
    stopped = opened(6)
    assert reply(stopped, asked, Heard(prefills=1)).how == "interrupted"
    assert reply(stopped, asked, first := Heard(tokens=3)).how == "interrupted"
    assert first.prefills[0].reused > 0, "the part that was computed is used"
    again = Heard()
    reply(stopped, asked, again)
    assert again.said == whole.said


def test_loading_can_be_stopped(model: Path) -> None:
    engine = ThreadChatEngine(ModelBackend(model, EngineOptions()), "model", SamplingOptions(), 6)
    engine.events = heard = Heard()
    heard.left[Loading], heard.stop = 1, engine.stop
    engine.start()
    assert heard.until(Failed) == Failed(None)
    assert engine.close(30)


def test_a_model_that_does_not_open_says_why(tmp_path: Path) -> None:
    engine = ThreadChatEngine(ModelBackend(tmp_path, EngineOptions()), "model", SamplingOptions(), 6)
    engine.start()
    failed = engine.events.get(timeout=60)
    assert isinstance(failed, Failed) and isinstance(failed.error, InputError)
    assert engine.close(30)


def test_chat_in_a_terminal(model: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    command = [*MAIN, "chat", str(model), "--context", "4096", "--max-tokens", "30", "--seed", "1"]
    with Person(command, env=env) as person:
        person.sees("0/4,096 tokens", 60)
        person.enters("hello")
        person.sees("thought for|cut off", 60)
        person.sees("cut off", 60)
        person.sees(r"decode [\d.]+ tok/s")
        person.enters("/nothink")
        person.enters("again")
        person.until(lambda: person.everything().count("cut off") == 2, "a second answer", 60)
        person.types(CTRL_C)
        person.types(CTRL_D)
        person.ends()
    (file,) = (tmp_path / "dsv4-mlx" / "chats").glob("*.json")
    messages = json.loads(file.read_text("utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert messages[0]["text"] == "hello" and messages[1]["tokens"] == 30


@pytest.mark.parametrize("command", ["generate", pytest.param("chat", marks=pytest.mark.long)])
def test_a_pipe_goes_before_the_prompt(model: Path, tmp_path: Path, command: str) -> None:
    def answers(options: list[str], piped: bytes) -> bytes:
        more = ["--max-tokens", "8", "--seed", "3", "--temperature", "0", "--think", "off"]
        found = run([*MAIN, command, str(model), *options, *more], input=piped, capture_output=True)
        assert found.returncode == 0, found.stderr
        assert b"\x1b" not in found.stdout
        return found.stdout

    both = answers(["-p", "review this"], b"+ a line\n")
    assert both == answers([], b"+ a line\n\nreview this") and both.strip()


@pytest.mark.parametrize(
    ("piped", "options", "message"),
    [
        (b"ab\0cd", [], "standard input is binary: byte 2 of 5 is zero"),
        (b"\xe9t\xe9", [], "standard input is not UTF-8 text: byte 0 is 0xe9"),
        (b"", [], "the prompt is empty"),
        (None, [], "no prompt, and standard input is no pipe"),
        (b"word " * 20_000, ["--context", "1024"], "the context holds 1024"),
    ],
)
def test_bad_pipes(model: Path, piped: bytes | None, options: list[str], message: str) -> None:
    command = [*MAIN, "generate", str(model), *options]
    if piped is None:
        found = run(command, capture_output=True, stdin=DEVNULL)
    else:
        found = run(command, capture_output=True, input=piped)
    assert found.returncode == 2 and message in found.stderr.decode(), found.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "Missing argument 'MODEL'"), ("nowhere", "there is no folder"), ("empty", "not a finished")],
)
def test_a_missing_or_unfinished_model(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / name)] if name else []
    with Person([*MAIN, "chat", *given], env={"HOME": str(tmp_path), "DSV4_MODEL": ""}) as person:
        person.sees("error: ")
        person.ends(2)
        assert message in person.text().replace("\n", " ") and "next:" in person.text()


@pytest.mark.long
def test_a_resumed_conversation_takes_its_state_from_disk(
    opened: Callable[..., ThreadChatEngine], tmp_path: Path
) -> None:
    said = (ChatMessage("user", "many words " * 70), ChatMessage("assistant", "yes"))
    asked = ChatRequest((*said, ChatMessage("user", "more")), "on", 7)
    first, second = opened(6, tmp_path / "states"), opened(6, tmp_path / "states")
    whole = Heard()
    reply(first, asked, whole)
    first.rate = 1e9  # a prefill so fast that no disk is worth it
    first.keep("key", said, "on")
    first.recall("key")
    assert whole.until(Recalled) == Recalled(0)
    assert not (tmp_path / "states").exists()
    first.rate = 10.0
    first.keep("key", said, "on")
    first.recall("key")
    assert whole.until(Recalled) == Recalled(0), "what it knows already"
    again = second.events = Heard()
    second.recall("other")
    assert again.until(Recalled) == Recalled(0)
    second.recall("key")
    restored = again.until(Recalled).tokens
    assert restored >= 256
    reply(second, asked, again)
    assert again.prefills[0].reused == restored and again.said == whole.said


def test_generate_in_a_terminal_is_plain_on_request(model: Path) -> None:
    options = ["-p", "hello", "--max-tokens", "8", "--seed", "1", "--plain"]
    with Person([*MAIN, "generate", str(model), *options]) as person:
        person.ends()
        assert person.text() and b"\x1b" not in bytes(person.raw)
