"""Every command, without a screen."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from dsv4_mlx.terminal.commands import COMMANDS, is_command
from terminal.fakes import Talk
from terminal.screens import chat


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path)


def test_the_list_is_complete() -> None:
    wanted = (
        "help think nothink max system read save load list retry undo edit model tokens stats copy clear quit"
    )
    assert list(COMMANDS) == wanted.split()


@pytest.mark.parametrize("typed", ["/exit", "/bye", "/quit", "exit", "quit", "Bye", "/q"])
def test_ways_to_leave(talk: Talk, typed: str) -> None:
    talk.says(typed)
    assert talk.shown.code == 0 and not talk.texts


def test_commands_of_other_chats(talk: Talk) -> None:
    talk.says("hello")
    talk.says("/new")
    assert not talk.chat.conversation.messages
    for typed, mode in (("/think off", "off"), ("/think max", "max"), ("/think", "on")):
        talk.says(typed)
        assert talk.chat.conversation.think == mode
    talk.says("/think deep")
    assert "off, on or max" in talk.shown.problems[-1]
    talk.says("/set temperature 0.5")
    assert "dsv4-mlx chat --help" in talk.shown.problems[-1]
    talk.says("/model")
    assert talk.shown.notes[-1].startswith("scripted, context ")


def test_a_sentence_with_exit_in_it_is_a_question(talk: Talk) -> None:
    talk.says("exit strategy?")
    assert talk.texts[0] == "exit strategy?"


def test_tokens_are_counted_once(talk: Talk) -> None:
    """What /tokens says is what the status line says."""
    talk.says("hello")
    talk.says("/tokens")
    assert talk.shown.notes[-1].startswith(f"{talk.chat.used:,} of ")


def test_help_names_every_command(talk: Talk) -> None:
    talk.says("/help")
    assert all(f"/{name}" in talk.shown.notes[-1] for name in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "nearest"), [("/hlep", "help"), ("/sytem x", "system"), ("/stat", "stats"), ("/xyzzy", "")]
)
def test_an_unknown_command_gets_the_nearest(talk: Talk, typed: str, nearest: str) -> None:
    talk.says(typed)
    assert f"the nearest is /{nearest}" in talk.shown.problems[-1]
    assert not talk.texts


def test_a_path_or_a_space_is_no_command(talk: Talk) -> None:
    assert not is_command("/etc/hosts is a file") and not is_command(" /help") and is_command("/help")
    talk.says(" /help is a word")
    assert talk.texts[0] == " /help is a word"


def test_thinking_modes_reach_the_engine(talk: Talk) -> None:
    for command, mode in (("/nothink", "off"), ("/max", "max"), ("/think", "on")):
        talk.says(command)
        talk.says("hello")
        assert talk.engine.asked[-1].think == mode


def test_system_is_set_shown_and_removed(talk: Talk) -> None:
    talk.says("/system Be brief.")
    talk.says("hello")
    assert [m.role for m in talk.engine.asked[-1].messages] == ["system", "user"]
    talk.says("/system")
    assert talk.shown.notes[-1] == "system: Be brief."
    talk.says("/system -")
    talk.says("again")
    assert talk.engine.asked[-1].messages[0].role == "user"


def test_read_puts_a_file_before_the_question(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "notes with space.txt"
    file.write_text("one\n```\ntwo")
    talk.says(f"/read {file}")
    assert "3 lines" in talk.shown.notes[-1]
    talk.says("what is it?")
    sent = talk.engine.asked[-1].messages[-1].text
    assert sent == f"{file}:\n````\none\n```\ntwo\n````\n\nwhat is it?"
    assert not talk.chat.attachments


def test_read_refuses_with_the_reason(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\0cd")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    cases = {
        "/read": "/read needs a file",
        f"/read {tmp_path}/none": "there is no file",
        f"/read {tmp_path}": "is a folder",
        f"/read {tmp_path}/binary": "is binary: byte 2 of 5 is zero",
        f"/read {tmp_path}/latin": "is not UTF-8 text: byte 0 is 0xe9",
        "/read /dev/null": "is not a file",
        "/read bad\0name": "there is no file",
    }
    for line, message in cases.items():
        talk.says(line)
        assert message in talk.shown.problems[-1], line
        assert "next:" in talk.shown.problems[-1]
    assert not talk.chat.attachments


def test_read_refuses_what_it_may_not_read(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("x")

    def denied(path: Path) -> bytes:  # root may read everything, so permissions alone would not do
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    talk.says(f"/read {file}")
    assert "Permission denied" in talk.shown.problems[-1]


@pytest.mark.parametrize("text", ["".join(f"line {i}\n" for i in range(2000)), "x" * 20_000])
def test_a_file_larger_than_the_context_offers_its_tail(tmp_path: Path, text: str) -> None:
    talk = Talk(tmp_path, "small")
    file = tmp_path / "big.txt"
    file.write_text(text)
    talk.says(f"/read {file}")
    tokens = len(text) // 4
    assert "more than the context of 500 has room for" in talk.shown.problems[-1]
    over = int(talk.shown.problems[-1].split(" tokens, ")[1].split(" more")[0].replace(",", ""))
    assert tokens - 500 < over < tokens - 500 + 60
    talk.says("y")
    (attached,) = talk.chat.attachments
    assert text.endswith(attached.text) and len(attached.text) > 1000
    if "\n" in text:
        assert attached.text.startswith("line ")
    talk.says("what is it?")
    assert talk.shown.questions == ["what is it?"]


def test_the_offer_holds_for_one_line(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "small")
    (tmp_path / "big.txt").write_text("line\n" * 2000)
    talk.says(f"/read {tmp_path}/big.txt")
    talk.says("/tokens")
    talk.says("y")
    assert talk.texts[0] == "y"


def test_a_question_too_long_for_the_context_is_refused_and_given_back(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "small")
    talk.says("x" * 4000)
    assert "1,004 tokens, 505 more than the context of 500" in talk.shown.problems[-1]
    assert talk.shown.back == "x" * 4000 and not talk.texts


def test_save_load_and_list(talk: Talk, tmp_path: Path) -> None:
    talk.says("/save")
    assert "nothing to save" in talk.shown.problems[-1]
    talk.says("first question")
    talk.says("/save my talk")
    talk.says("/clear")
    assert talk.shown.wiped == 1 and not talk.texts
    talk.says("second question")
    talk.says("/list")
    listing = talk.shown.notes[-1].splitlines()
    assert "second question  [scripted]  (this one)" in listing[0] and "my talk" in listing[1]
    talk.says("/load my")
    assert talk.texts[0] == "first question" and talk.shown.replayed == 1
    talk.says("third")
    assert len(talk.texts) == 4 and len(talk.engine.asked[-1].messages) == 3
    talk.says("/load 2")
    assert talk.texts[0] == "second question"
    talk.says("/load nothing like it")
    assert "there is no conversation 'nothing like it', of 2 stored" in talk.shown.problems[-1]


def test_retry_undo_and_edit(talk: Talk) -> None:
    for command in ("/retry", "/undo", "/edit"):
        talk.says(command)
        assert talk.shown.problems[-1].startswith("there is no")
    talk.says("first")
    talk.says("second")
    talk.says("/retry")
    seeds = [asked.seed for asked in talk.engine.asked]
    assert len(talk.texts) == 4 and seeds[2] != seeds[1]
    talk.says("/edit")
    assert talk.shown.back == "second" and talk.texts[0] == "first" and len(talk.texts) == 2
    talk.says("/undo")
    assert not talk.texts


def test_tokens_stats_and_copy(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    talk.says("/stats")
    assert talk.shown.notes[-1] == "no answer yet"
    talk.says("/copy")
    assert "no answer to copy" in talk.shown.problems[-1]
    talk.says("think")
    talk.says("/tokens")
    assert "of 8,192 tokens are used" in talk.shown.notes[-1]
    talk.says("/stats")
    for part in (
        "prompt ",
        "answer ",
        "tokens/s",
        "ended by the model",
        "thinking",
        "memory    12.3 GB",
        "experts   93% in memory",
    ):
        assert part in talk.shown.notes[-1]
    talk.says("/copy")
    assert talk.shown.escapes == ["\x1b]52;c;VGhlICoqYW5zd2VyKiogaXMgNDIu\a"]


def test_an_argument_where_there_is_none_is_refused(talk: Talk) -> None:
    talk.says("/clear all of it")
    assert "/clear takes nothing after it, found 'all of it'" in talk.shown.problems[-1]


def test_quit_ends(talk: Talk) -> None:
    talk.says("/quit")
    assert talk.shown.code == 0


def test_commands_in_a_terminal(tmp_path: Path) -> None:
    with chat(tmp_path) as person:
        person.sees("think on")
        person.enters("/hlep")
        person.sees("there is no command /hlep; the nearest is /help")
        person.enters("hello")
        person.sees("You said 5")
        person.enters("/edit")
        person.sees("taken back\n\n> hello")
        person.types("!\r")
        person.sees("You said 6 characters; turn 1")
        person.enters("/clear")
        person.sees("a new conversation; the last one is stored as 'hello!'")
        person.lost("You said")
        person.enters("/list")
        person.sees(r"1  \d{4}-\d\d-\d\d \d\d:\d\d +2 messages  hello!")
        person.enters("/load 1")
        person.sees("You said 6")
        person.enters("/quit")
        person.ends()
