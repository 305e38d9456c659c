"""Text of every kind: wide, combining, long, pasted, remembered, completed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from terminal.screens import ENTER, ESCAPE, chat

LARGE = pytest.param((200, 50), marks=pytest.mark.long)
SIZES = pytest.mark.parametrize("size", [(80, 24), LARGE], ids=["80x24", "200x50"])
READY = "tokens · think on"


@SIZES
def test_wide_and_combining_characters_and_emoji_split_over_tokens(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    with chat(tmp_path, size=size) as person:
        person.sees(READY)
        person.enters("wide")
        person.sees(r"fin\n\nall\n")
        assert "日本語のテキスト é" in person.text()
        raw = bytes(person.raw).decode("utf-8")
        # The final text reaches the terminal unbroken, clusters whole.
        for cluster in ("日本語のテキスト", "e\u0301", "👩\u200d💻", "👍\U0001f3fd", "한국어", "नमस्ते", "🇩🇪"):
            assert cluster in raw, cluster
        final = raw[raw.rindex("日本") :]
        assert final.count("fin") >= 1 and "�" not in raw


@SIZES
def test_a_very_long_line_is_whole_and_in_order(tmp_path: Path, size: tuple[int, int]) -> None:
    with chat(tmp_path, size=size) as person:
        person.sees(READY)
        person.enters("long line")
        person.sees("after it")
        person.sees(r"decode \d+")
        text = person.everything()
        words = [word for word in text.split() if word[0] == "w" and word[1:].isdigit()]
        assert words == [f"w{i}" for i in range(1200)]


def test_a_word_longer_than_the_screen_is_wide_is_whole(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.enters("one word")
        person.sees(r"\bend\b")
        person.sees(r"decode \d+")
        assert person.everything().partition("> one word")[2].count("x") == 3000


@SIZES
def test_a_long_code_block_is_whole_and_in_order(tmp_path: Path, size: tuple[int, int]) -> None:
    with chat(tmp_path, size=size) as person:
        person.sees(READY)
        person.enters("code")
        person.sees("Done.")
        person.sees(r"decode \d+")
        found = [line.strip() for line in person.everything().splitlines() if line.startswith("  value_")]
        assert found == [f"value_{i} = {i}" for i in range(60)]


def test_a_paste_of_100_kb_is_a_mark_in_the_input_and_whole_in_the_question(tmp_path: Path) -> None:
    text = "\n".join(f"line {i} " + "x" * 60 for i in range(1450))
    assert len(text) > 100_000
    with chat(tmp_path) as person:
        person.sees(READY)
        person.types("look: ")
        start = time.monotonic()
        person.pastes(text)
        person.sees(r"> look: \[paste 1: 1,450 lines\]")
        assert time.monotonic() - start < 5
        person.types(" what is it?" + ENTER)
        person.sees(r"the conversation would have 2\d,\d+ tokens, 1\d,\d+ more than the context")
        person.sees(r"> look: \[paste \d: 1,450 lines\]|> \[paste 2")  # it is not lost


def test_a_paste_that_fits_is_sent_whole(tmp_path: Path) -> None:
    text = "\n".join(f"line {i}" for i in range(100))
    with chat(tmp_path) as person:
        person.sees(READY)
        person.pastes(text)
        person.sees(r"\[paste 1: 100 lines\]")
        person.enters("")
        person.sees(f"You said {len(text)} characters")
        person.sees(r"\.\.\. 8\d lines more \.\.\.")


def test_several_lines_by_alt_enter_and_backslash(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees(READY)
        person.types("one" + ESCAPE + ENTER)
        person.sees("> one")
        person.types("two\\" + ENTER)
        person.types("three" + ENTER)
        person.sees("You said 13 characters")
        person.sees("> one\n  two\n  three\n")


def test_history_across_runs_and_a_thousand_turns(tmp_path: Path) -> None:
    lines = [json.dumps({"version": 1}), *(json.dumps(f"question {i}") for i in range(1000))]
    (tmp_path / "history").write_text("\n".join(lines) + "\n")
    with chat(tmp_path) as person:
        person.sees(READY)
        person.types("\x1b[A")  # Up
        person.sees("> question 999")
        person.types("\x1b[A")
        person.sees("> question 998")
        person.types("\x15")
        person.enters("newest")
        person.sees("You said 6")
        person.types("\x04")
        person.ends()
    with chat(tmp_path) as person:
        person.sees(READY)
        person.types("\x1b[A")
        person.sees("> newest")


def test_a_conversation_of_a_thousand_turns(tmp_path: Path) -> None:
    """Resumed, asked on, saved: none of it takes noticeably long."""
    from dsv4_mlx.terminal.conversation import Conversation, Message
    from dsv4_mlx.terminal.store import ConversationStore

    conversation = Conversation.new()
    for i in range(1000):
        conversation.messages += [Message("user", f"q{i}"), Message("assistant", f"Answer **{i}**.")]
    ConversationStore(tmp_path / "chats").save(conversation)
    start = time.monotonic()
    with chat(tmp_path, "quick", "--resume", "last") as person:
        person.sees("Answer 999")
        person.sees("2000 messages")
        assert time.monotonic() - start < 10
        start = time.monotonic()
        person.enters("hi")
        person.sees("the conversation would have 12,|You said 2 characters")
        assert time.monotonic() - start < 3


def test_completion_of_commands_and_files(tmp_path: Path) -> None:
    file = tmp_path / "some-notes.txt"
    file.write_text("hello\n")
    with chat(tmp_path) as person:
        person.sees(READY)
        person.types("/re")
        person.sees("/read .*before the next question")
        person.sees("/retry")
        person.types("a\t")
        person.sees("> /read")
        person.types("some-n\t")
        person.sees("some-notes.txt")
        person.enters("")
        person.sees(r"1 lines, \d+ tokens")
