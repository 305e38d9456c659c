"""Files: whole or not at all, private, and damaged ones kept aside."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.terminal.conversation import Conversation, Message
from dsv4_mlx.terminal.history import KEPT, REWRITE, LineHistory
from dsv4_mlx.terminal.store import ConversationStore, NewerError
from terminal.fakes import Talk
from terminal.screens import chat


def conversation(text: str = "hello") -> Conversation:
    found = Conversation.new("Be brief.", "max")
    found.messages = [
        Message("user", text),
        Message("assistant", "Hi \ud83d.", "hm", "", 1.5, 3, 9, "length"),
    ]
    return found


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    stored = conversation()
    ConversationStore(tmp_path / "chats").save(stored)
    assert ConversationStore(tmp_path / "chats").load(stored.key) == stored


def test_files_are_private(tmp_path: Path) -> None:
    os.umask(0o022)
    Talk(tmp_path).says("hello")
    (file,) = (tmp_path / "chats").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    history = LineHistory(tmp_path / "data" / "history")
    history.append_string("secret")
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(tmp_path)
    talk.says("first")
    before = {path: path.read_bytes() for path in (tmp_path / "chats").iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    talk.says("second")
    talk.says("third")
    said = [problem for problem in talk.shown.problems if "No space left on device" in problem]
    assert len(said) == 1 and "the chat goes on without saving" in said[0]
    assert {path: path.read_bytes() for path in (tmp_path / "chats").iterdir()} == before
    assert len(talk.texts) == 6
    monkeypatch.undo()
    talk.says("fourth")
    assert "the conversation is saved again" in talk.shown.notes
    assert len(ConversationStore(tmp_path / "chats").load(talk.chat.conversation.key).messages) == 8


def test_a_folder_that_cannot_be_made_is_said_once_and_the_chat_goes_on(tmp_path: Path) -> None:
    (tmp_path / "chats").write_text("a file where the folder should be")
    talk = Talk(tmp_path)
    talk.says("first")
    talk.says("second")
    assert len(talk.shown.problems) == 1 and "can't be made" in talk.shown.problems[0]
    assert len(talk.texts) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe\xff", b'{"version": "1"}', b'{"version": 1}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_conversation_is_kept_aside_and_said_once(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    (folder / "20260101-000000-aaaa.json").write_bytes(content)
    talk = Talk(tmp_path)
    talk.says("/list")
    talk.says("/list")
    assert len(talk.shown.problems) == 1 and "damaged" in talk.shown.problems[0]
    (kept,) = folder.glob("*.damaged")
    assert kept.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"think": "perhaps"}, {"messages": [{"role": "user"}]}, {"messages": [{"role": "x", "text": ""}]},
        {"messages": [{"role": "user", "text": 3}]}, {"messages": 5}, {"created": "now?"}, {"title": None},
    ],
)  # fmt: skip
def test_wrong_fields_are_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    store = ConversationStore(tmp_path)
    stored = conversation()
    store.save(stored)
    raw = json.loads(store.path(stored.key).read_text("utf-8"))
    store.path(stored.key).write_text(json.dumps({**raw, **change}))
    with pytest.raises(InputError, match="damaged"):
        store.load(stored.key)
    assert not store.path(stored.key).exists()


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "chats")
    stored = conversation()
    store.save(stored)
    path = store.path(stored.key)
    path.write_text(path.read_text("utf-8").replace('"version": 1', '"version": 9'))
    with pytest.raises(NewerError, match="version 9, this program reads up to 1"):
        store.load(stored.key)
    talk = Talk(tmp_path)
    talk.says("/list")
    talk.says("/list")
    assert len(talk.shown.problems) == 1 and path.exists()


def test_a_conversation_changed_elsewhere_is_not_overwritten(tmp_path: Path) -> None:
    Talk(tmp_path).says("hello")
    one, two = Talk(tmp_path, resume="last"), Talk(tmp_path, resume="last")
    one.says("from one")
    two.says("from two, which is longer")
    assert "was changed elsewhere" in two.shown.problems[-1]
    found = [
        ConversationStore(tmp_path / "chats").load(path.stem) for path in (tmp_path / "chats").glob("*.json")
    ]
    assert sorted(c.messages[2].text for c in found) == ["from one", "from two, which is longer"]


def test_resume_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no conversation 'last', of 0 stored"):
        Talk(tmp_path, resume="last")


def lines_of(history: LineHistory) -> list[str]:
    return list(history.load_history_strings())


def test_history_comes_back_newest_first(tmp_path: Path) -> None:
    for text in ("one", "two\nlines", "three \ud83d 👩‍💻"):
        LineHistory(tmp_path / "history").append_string(text)
    assert lines_of(LineHistory(tmp_path / "history")) == ["three \ud83d 👩‍💻", "two\nlines", "one"]


def test_history_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "history"
    lines = [json.dumps({"version": 1}), *(json.dumps(str(i)) for i in range(REWRITE + 1))]
    path.write_text("\n".join(lines) + "\n")
    assert len(lines_of(LineHistory(path))) == KEPT
    assert lines_of(LineHistory(path))[0] == str(REWRITE)


def test_damaged_history_is_kept_aside_and_said_once(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for content in (b"\xff\xfe", b"not json\n", b'{"version": 1}\n17\n"x"\n', b'{"other": 1}\n'):
        path.write_bytes(content)
        history = LineHistory(path)
        assert len(history.problems) == 1 and "damaged" in history.problems[0]
        history.append_string("new")
        assert lines_of(LineHistory(path)) == ["new"] and not LineHistory(path).problems
    assert len(list(tmp_path.glob("history.damaged*"))) == 4


def test_a_line_cut_short_by_a_crash_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text('{"version": 1}\n"one"\n"two"\n"thr')
    history = LineHistory(path)
    assert lines_of(history) == ["two", "one"] and not history.problems
    history.append_string("four")
    assert lines_of(LineHistory(path)) == ["four", "two", "one"]


def test_newer_history_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text('{"version": 2}\n"one"\n')
    history = LineHistory(path)
    assert "version 2, this program reads up to 1" in history.problems[0]
    history.append_string("two")
    assert path.read_text() == '{"version": 2}\n"one"\n'


def test_unwritable_history_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    history = LineHistory(tmp_path / "data" / "history")
    history.append_string("one")
    history.append_string("two")
    assert len(history.problems) == 1 and "history" in history.problems[0]


def test_problems_of_files_are_seen_in_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "chats").write_text("a file")
    (tmp_path / "history").write_text("damaged")
    with chat(tmp_path) as person:
        person.sees("the input history is damaged")
        person.enters("hello")
        person.sees("the folder can't be made: File exists")
        person.sees("You said 5")


def test_errors_carry_their_place(tmp_path: Path) -> None:
    (tmp_path / "chats").write_text("a file")
    with pytest.raises(MachineError, match="chats"):
        ConversationStore(tmp_path / "chats").save(conversation())
