"""The drawn chat, as a person sees it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from terminal.screens import CTRL_D, CTRL_L, CTRL_T, chat

SIZES = pytest.mark.parametrize(
    "size",
    [
        pytest.param((80, 24), id="80x24"),
        pytest.param((200, 50), id="200x50", marks=pytest.mark.long),
    ],
)
READY = "tokens · think on"


@SIZES
def test_an_answer_streams_and_ends_as_rendered_markdown(tmp_path: Path, size: tuple[int, int]) -> None:
    with chat(tmp_path, size=size) as person:
        person.sees(READY)
        person.enters("markdown")
        person.sees("keeps the last")
        assert "The end" not in person.text()  # it streams: the end is not there yet
        person.sees("The end")
        person.sees(r"decode \d+")
        text = person.everything()
        assert " • first item\n • second item\n" in text
        assert "  def slide(rows, size):\n      return rows[-size:]\n" in text
        assert "name  value" in text and "**" not in text and "```" not in text
        for once in ("Sliding windows", "A window keeps", "first item", "def slide", "The end."):
            assert text.count(once) == 1, f"{once!r} is there {text.count(once)} times"
        assert b"\x1b[" in bytes(person.raw) and b"36m" in bytes(person.raw)  # colour
        person.types(CTRL_D)
        person.ends()


@SIZES
def test_thinking_runs_in_a_pane_collapses_and_opens_again(tmp_path: Path, size: tuple[int, int]) -> None:
    with chat(tmp_path, size=size) as person:
        person.sees(READY)
        person.enters("ponder")
        person.sees(r"thinking  \d+\.\d s, \d+ tokens\n│ thought number \d+")
        person.sees(r"▸ thought for \d+\.\d s, 151 tokens")
        person.sees("The answer is 42")
        person.lost("│ thought number")
        assert "thought number" not in person.everything()
        person.types(CTRL_T)
        person.sees("│ thought number 29 is here")
        person.types("\x1b[5~")  # PageUp
        person.lost("thought number 29")
        person.sees("thought number 24")
        person.types(CTRL_T)
        person.lost("thought number")
        person.sees("The answer is 42")


@SIZES
def test_resize_while_an_answer_streams(tmp_path: Path, size: tuple[int, int]) -> None:
    with chat(tmp_path, size=size) as person:
        person.sees(READY)
        person.enters("slow please")
        person.sees("word20")
        for columns, rows in ((50, 15), (120, 40), (40, 12), size):
            person.resizes(columns, rows)
            seen = _last_word(person.text())
            person.until(lambda at=seen: _last_word(person.text()) > at + 5, "going on")  # type: ignore[misc]
            lines = person.lines()
            assert all(len(line) <= columns for line in lines)
            assert sum("tokens" in line for line in lines) == 1, person.text()
            assert sum(line.startswith(">") for line in lines) <= 2  # the question and the input
        person.types("\x03")
        person.sees(r"\(stopped\)")
        words = [word for word in person.text().split() if word.startswith("word")]
        numbers = [int(word[4:]) for word in words]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "words are lost or doubled"


def _last_word(text: str) -> int:
    return max(map(int, re.findall(r"\bword(\d+)\b", text)), default=0)


def test_typing_ahead_shows_at_once_and_waits_its_turn(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("slow please")
        person.sees("word10")
        for i, key in enumerate("abcdefgh"):
            start = time.monotonic()
            person.types(key)
            person.sees(f"> {'abcdefgh'[: i + 1]}")
            assert time.monotonic() - start < 0.5
        person.enters("")
        person.sees("1 waiting")
        person.types("\x03")
        person.sees(r"\(stopped\)")
        person.sees("> abcdefgh")  # what was waiting is back in the input
        person.enters("")
        person.sees("You said 8 characters")


def test_a_waiting_question_is_asked_when_the_answer_ends(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("think")
        person.enters("second question")
        person.sees("You said 15 characters; turn 3")


def test_load_and_prefill_say_how_far_they_are(tmp_path: Path) -> None:
    with chat(tmp_path, "loading") as person:
        person.sees(r"loading [━╌]+ \d+\.\d GB/100\.0 GB · \d+\.\d GB/s · .*left")
        person.enters("slow prefill")
        person.sees("1 waiting")
        person.sees(r"reading the prompt [━╌]+ \d+/7 tokens · [\d.]+ tok/s · .* left")
        person.types("\x03")
        person.lost("reading the prompt|stopping")


def test_tool_calls_and_limits_are_shown_as_such(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("tool")
        person.sees(r'⚙ calls get_weather\{"city": "Oslo"\}')
        person.enters("cut")
        person.sees("cut off: the limit of tokens is reached")


def test_what_a_model_says_does_not_steer_the_terminal(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("escape")
        person.sees("here")
        assert b"owned\a" not in bytes(person.raw) and b"\x1b]0;owned" not in bytes(person.raw)
        assert "safe" in person.text()


def test_no_color_is_honoured(tmp_path: Path) -> None:
    with chat(tmp_path, env={"NO_COLOR": "1"}) as person:
        person.sees(READY)
        person.enters("markdown")
        person.sees("The end")
        colours = {f"\x1b[{code}m".encode() for code in (*range(30, 38), *range(90, 98))}
        assert not any(colour in bytes(person.raw) for colour in colours)


def test_a_narrow_terminal(tmp_path: Path) -> None:
    with chat(tmp_path, size=(30, 12)) as person:
        person.sees("0/8,192 tokens")
        person.enters("markdown")
        person.sees("The end")
        assert all(len(line) <= 30 for line in person.lines())


def test_a_word_per_key_is_drawn_again_on_ctrl_l(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("hello")
        person.sees("You said 5")
        person.screen.reset()  # as if something else had written over it
        person.types(CTRL_L)
        person.sees("You said 5")
        person.sees("tokens")


def test_the_bottom_is_clean_after_leaving(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("hello")
        person.sees("You said 5")
        person.enters("/quit")
        person.ends()
        assert "tokens ·" not in person.text()
        assert person.lines()[-1].startswith("You said 5")
