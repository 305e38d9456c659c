"""Hard token sequences through every door: chat in a terminal, `generate`, the server, the library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from server.client import call
from server.sse import read_chat
from terminal.screens import CTRL_D, Person

import dsv4_mlx
from dsv4_mlx.engine import generate
from dsv4_mlx.hub.models import SHIPPED
from sequences.scripted import backend_of, run_scripted
from sequences.sequences import TABLE, Door, Sequence, prompt_length

SCRIPTED = str(Path(__file__).with_name("scripted.py"))
QUESTION = "x"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LIMITS = sorted({(one.most, one.room) for one in TABLE if one.goes_through("chat")}, key=str)


def of(door: Door, most: int | None = None, room: int | None = None) -> list[Sequence]:
    return [one for one in TABLE if one.goes_through(door) and (one.most, one.room) == (most, room)]


def limits(most: int | None, room: int | None) -> list[str]:
    context = [] if room is None else ["--context", str(prompt_length(QUESTION, think=True) + room)]
    return [*context, *([] if most is None else ["--max-tokens", str(most)])]


def script(folder: Path, sequences: list[Sequence]) -> str:
    file = folder / "script.json"
    file.write_text(json.dumps([one.ids() for one in sequences]), encoding="utf-8")
    return str(file)


def test_the_table_is_large_and_its_names_are_different() -> None:
    assert len({one.name for one in TABLE}) == len(TABLE)
    for door in ("chat", "generate", "server", "library"):
        assert sum(one.goes_through(door) for one in TABLE) >= 40


@pytest.mark.parametrize("one", [one for one in TABLE if one.goes_through("generate")], ids=str)
def test_generate(one: Sequence, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    reasons: list[str] = []

    def noted(*arguments: Any) -> Generator[Any, None, Any]:
        reasons.append((yield from read_answer(*arguments)))
        return reasons[-1]

    read_answer = generate.read_answer
    monkeypatch.setattr(generate, "read_answer", noted)
    options = ["--think", "on" if one.think else "off", *limits(one.most, one.room)]
    options += [word for text in one.stop for word in ("--stop", text)]
    found = run_scripted(
        [one.ids()], ["generate", str(SHIPPED), "-p", QUESTION, "--ops", "reference", *options]
    )
    out, err = capfd.readouterr()
    assert found == 0, err
    err = re.sub(r"^loading.*\n", "", err)
    notes: list[str] = []
    while said := re.search(r"(^|\n)\((no answer|cut off).*\)\n$", err):  # what the command says of it
        notes.insert(0, said[2])
        err = err[: said.start()] + said[1]
    assert notes == ["cut off"] * (one.reason == "length") + ["no answer"] * (not one.answer.strip())
    # what was said last is ended with a line feed; so is thinking before an answer
    last_is_thinking = bool(one.thinking) and not one.answer
    assert out == ("" if last_is_thinking else one.answer + "\n")
    assert err == (one.thinking + "\n" if one.thinking else "")
    assert reasons == [one.reason]


@pytest.mark.parametrize(("most", "room"), LIMITS)
def test_chat(most: int | None, room: int | None, tmp_path: Path) -> None:
    """In a terminal; every question begins a conversation of its own, which is then in a file."""
    sequences = of("chat", most, room)
    command = [sys.executable, SCRIPTED, script(tmp_path, sequences), "chat", str(SHIPPED)]
    environment = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with Person([*command, "--ops", "reference", *limits(most, room)], env=environment) as person:
        person.sees(r"0/[\d,]+ tokens", 60)
        for one in sequences:  # typed ahead: lines wait until the model has answered the one before
            for line in ("/think" if one.think else "/nothink", QUESTION, "/clear"):
                person.enters(line)
        person.until(lambda: len(stored(tmp_path)) == len(sequences), "the last answer", 60)
        person.types(CTRL_D)
        person.ends()
        shown = bytes(person.raw).decode("utf-8", "replace")
    found = [(one["thinking"], one["text"], one["ending"]) for one in stored(tmp_path)]
    assert dict(zip(map(str, sequences), found, strict=True)) == {str(o): o.expected() for o in sequences}
    assert "\ue000" not in shown and "\ue001" not in shown, "the parser's own spelling of markers"


def stored(folder: Path) -> list[dict[str, Any]]:
    """The answers in the files of conversations, in the order of the questions."""
    files = [json.loads(path.read_text("utf-8")) for path in (folder / "dsv4-mlx" / "chats").glob("*.json")]
    files.sort(key=lambda file: file["created"])
    return [message for file in files for message in file["messages"] if message["role"] == "assistant"]


@contextmanager
def serving(folder: Path, sequences: list[Sequence], room: int | None) -> Iterator[int]:
    """The port of a server that answers with the sequences, in order."""
    command = [sys.executable, SCRIPTED, script(folder, sequences), "serve", str(SHIPPED), "--port", "0"]
    server = subprocess.Popen([*command, *limits(None, room)], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        lines = iter(server.stderr)
        port = next(int(found[1]) for line in lines if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
        assert any("ready" in line for line in lines)
        yield port
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.parametrize("room", sorted({one.room for one in TABLE}, key=str))
def test_server(room: int | None, tmp_path: Path) -> None:
    """Over HTTP, as a stream and then as one answer."""
    sequences = [one for one in TABLE if one.room == room for _ in range(2)]
    found: dict[str, Any] = {}
    with serving(tmp_path, sequences, room) as port:
        for one in sequences[::2]:
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": QUESTION}],
                "thinking": {"type": "enabled" if one.think else "disabled"},
                "stop": list(one.stop),
                **({"max_tokens": one.most} if one.most is not None else {}),
                **({"tools": [TOOL]} if one.tools else {}),
            }
            sent = call(port, "POST", "/v1/chat/completions", {**body, "stream": True}).text
            assert "error" not in sent, f"{one}: {sent}"
            streamed = read_chat(sent)
            choice = call(port, "POST", "/v1/chat/completions", body).json()["choices"][0]
            message = choice["message"]
            calls = tuple(text for pair in streamed.calls or [] for text in pair)
            found[str(one)] = streamed.reasoning, streamed.content, streamed.end, calls
            whole = message.get("reasoning_content") or "", message["content"], choice["finish_reason"]
            assert whole == found[str(one)][:3], one
    assert found == {str(one): (*one.expected(), one.calls) for one in sequences}


@pytest.mark.parametrize("room", sorted({one.room for one in TABLE}, key=str))
def test_library(room: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As events, of which the last is the whole answer."""
    sequences = [one for one in TABLE if one.room == room]
    monkeypatch.setattr("dsv4_mlx.api.ModelBackend", backend_of([one.ids() for one in sequences]))
    context = None if room is None else prompt_length(QUESTION, think=True) + room
    found: dict[str, Any] = {}
    with dsv4_mlx.load(SHIPPED, context=context) as model:
        for one in sequences:
            *events, answer = model.stream(
                QUESTION,
                think="on" if one.think else "off",
                tools=[TOOL] if one.tools else [],
                max_tokens=one.most,
                sampling=dsv4_mlx.SamplingOptions(stop_strings=one.stop),
            )
            pieces = [event for event in events if isinstance(event, dsv4_mlx.Piece)]
            thinking, text, calls = (
                "".join(piece.text for piece in pieces if piece.kind == kind)
                for kind in ("thinking", "answer", "tool")
            )
            assert isinstance(answer, dsv4_mlx.Answer)
            found[str(one)] = answer.thinking, answer.text, answer.reason, calls
            assert (thinking, text) == (answer.thinking, answer.text), one
            whole = [text for call in answer.tool_calls for text in (call.name, call.arguments)]
            assert whole == list(one.calls if answer.reason == "tool_calls" else ()), one
    assert found == {str(one): (*one.expected(), "".join(one.calls)) for one in sequences}
