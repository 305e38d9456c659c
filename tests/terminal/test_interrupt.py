"""Ctrl-C at every stage, and ends that are not asked for."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from terminal.screens import CTRL_C, CTRL_D, chat

READY = "tokens · think on"


def stored(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "chats").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_while_loading_it_ends(tmp_path: Path) -> None:
    with chat(tmp_path, "loading") as person:
        person.sees("loading")
        person.types(CTRL_C)
        person.ends(130)


def test_while_reading_the_prompt_the_question_comes_back(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow prefill")
        person.sees("reading the prompt")
        person.types(CTRL_C)
        person.sees("> slow prefill$|> slow prefill\n")
        person.lost("reading the prompt|stopping")
        person.types("\x15")  # Ctrl-U empties the line
        person.enters("/tokens")
        person.sees("0 of 8,192")


def test_while_thinking_what_was_thought_is_kept(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow think")
        person.sees("│ hmm hmm")
        person.types(CTRL_C)
        person.sees(r"▸ thought for")
        person.sees(r"\(stopped\)")
        person.enters("hello")
        person.sees("You said 5 characters; turn 3")
        message = stored(tmp_path)["messages"][1]
        assert message["thinking"].startswith("hmm hmm") and message["ending"] == "interrupted"


def test_while_answering_what_was_said_is_kept(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow please")
        person.sees("word20")
        person.types(CTRL_C)
        person.sees(r"\(stopped\)")
        assert "word20" in person.text()
        message = stored(tmp_path)["messages"][1]
        assert message["text"].startswith("word0 word1 ") and message["ending"] == "interrupted"
        person.enters("hello")
        person.sees("You said 5")


def test_at_the_prompt_it_empties_the_line_and_says_how_to_leave(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.types("half a question")
        person.sees("> half a question")
        person.types(CTRL_C)
        person.lost("half")
        person.types(CTRL_C)
        person.sees("Ctrl-D or /quit leaves")
        person.types(CTRL_D)
        person.ends()


def test_ctrl_d_while_answering_keeps_what_was_said(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow please")
        person.sees("word20")
        person.types(CTRL_D)
        person.ends()
        assert "word20" in stored(tmp_path)["messages"][1]["text"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_leave_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow please")
        person.sees("word10")
        person.signals(number)
        person.ends(143)
        assert [m["role"] for m in stored(tmp_path)["messages"]] == ["user"]  # the answer was under way
        assert bytes(person.raw).rstrip().endswith(b"\x1b[?25h") or b"\x1b[?2004l" in bytes(person.raw)


def test_a_kill_loses_no_more_than_the_running_answer(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("hello")
        person.sees("You said 5")
        person.enters("slow please")
        person.sees("word10")
        person.signals(signal.SIGKILL)
        person.ends(None)
    messages = stored(tmp_path)["messages"]
    assert [m["text"] for m in messages][::2] == ["hello", "slow please"]
    assert messages[1]["text"].startswith("You said 5")
    with chat(tmp_path, "quick", "--resume", "last") as person:
        person.sees("You said 5")
        person.sees("'hello', 3 messages")
        person.enters("/retry")
        person.sees("word10")


def test_sigint_from_outside_stops_the_answer(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow please")
        person.sees("word10")
        person.signals(signal.SIGINT)
        person.sees(r"\(stopped\)")
        person.enters("hello")
        person.sees("You said 5")


def test_errors_of_the_engine_are_said_and_the_chat_goes_on(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("fail")
        person.sees("! the device failed\n +next: rest")
        assert "half an answer" in person.text()
        person.enters("bug")
        person.sees("this is a bug in dsv4-mlx: ValueError: a bug")
        person.types("\x15")
        person.enters("hello")
        person.sees("You said 5")


def test_a_model_that_does_not_open_ends_with_its_message(tmp_path: Path) -> None:
    with chat(tmp_path, "broken") as person:
        person.sees("error: the disk failed\n +next: check it")
        person.ends(3)
