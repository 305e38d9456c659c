"""Lines of text: pipes, files, screen readers, terminals that can't be drawn on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsv4_mlx.terminal.terminal import charset
from terminal.screens import CTRL_C, CTRL_D, ROOT, RUN, Person, chat

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TERM": "xterm-256color"}


def run(
    folder: Path, *options: str, text: str = "", env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    command = [sys.executable, str(RUN), "quick", str(folder), *options]
    found = subprocess.run(
        command, input=text.encode(), capture_output=True, timeout=60, env={**ENVIRONMENT, **(env or {})}
    )
    return found.returncode, found.stdout.decode(), found.stderr.decode()


def _leave(person: Person) -> None:
    """Ctrl-D, once the program reads: in line mode a terminal forgets an earlier one."""
    person.sees(r"\n>$")
    time.sleep(0.3)
    person.types(CTRL_D)
    person.ends()


def test_one_question_gives_plain_text_and_stores_it(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "-p", "markdown")
    assert code == 0 and "A **window** keeps" in out and "\x1b" not in out + err
    code, out, err = run(tmp_path, "-p", "hello", "--resume", "last")
    assert "turn 3" in out


def test_thinking_is_not_part_of_the_output(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "-p", "think")
    assert (code, out) == (0, "The **answer** is 42.\n")
    assert re.search(r"thinking \.\.\.\nthought for \d", err)


def test_lines_from_a_pipe_are_answered_one_by_one(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, text="hello\n/stats\nsecond\\\nline\n")
    assert code == 0 and "\x1b" not in out + err
    assert "You said 5 characters; turn 1" in out and "You said 11 characters; turn 3" in out
    assert "ended by the model" in err


def test_an_error_of_the_engine_is_the_exit_code(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "-p", "fail")
    assert code == 3 and out == "half an answer\n" and "error: the device failed" in err
    code, out, err = run(tmp_path, "-p", "x" * 50_000)
    assert code == 2 and "more than the context of 8,192" in err


def test_plain_in_a_terminal_never_moves_the_cursor(tmp_path: Path) -> None:
    with chat(tmp_path, "quick", "--plain") as person:
        person.sees(">")
        person.enters("think")
        person.sees("thinking ...")
        person.sees(r"thought for \d+\.\d s, 151 tokens\nThe \*\*answer\*\* is 42\.\n>")
        person.enters("slow please")
        person.sees("word10")
        person.types(CTRL_C)
        person.sees(r"\(stopped\)")
        person.enters("/edit")
        person.sees("taken back\n> slow please")
        person.types("\x15")
        person.enters("hello")
        person.sees("You said 5 characters; turn 3")
        _leave(person)
        answers = bytes(person.raw).replace(b"\x1b[?2004h", b"").replace(b"\x1b[?2004l", b"")
        assert b"\x1b[2J" not in answers and b"\x1b[A" not in answers
        assert not re.search(rb"\x1b\[[0-9;]*m", answers)


@pytest.mark.parametrize("stage", ["slow prefill", "slow think", "slow please"])
def test_ctrl_c_in_plain_at_every_stage(tmp_path: Path, stage: str) -> None:
    with chat(tmp_path, "quick", "--plain") as person:
        person.sees(">")
        person.enters(stage)
        if stage == "slow prefill":
            time.sleep(0.3)
        else:
            person.sees("thinking|word3")
        person.types(CTRL_C)
        person.sees(r"\(stopped\)|> slow prefill$")
        person.types("\x15")
        person.enters("hello")
        person.sees("You said 5")


def test_ctrl_c_while_loading_in_plain(tmp_path: Path) -> None:
    with chat(tmp_path, "loading", "--plain") as person:
        person.sees("loading")
        person.signals(signal.SIGINT)
        person.ends(130)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"LC_ALL": "C"}, {"LC_ALL": "de_DE.ISO-8859-1"}])
def test_terminals_that_cannot_be_drawn_on(tmp_path: Path, env: dict[str, str]) -> None:
    with chat(tmp_path, "quick", env=env) as person:
        person.sees(">")
        if "LC_ALL" in env:
            person.sees("not UTF-8: plain text")
        person.enters("wide")
        person.sees("fin")
        person.sees("all")
        assert "LC_ALL" not in env or b"?" in bytes(person.raw)
        assert all(byte < 0x80 for byte in bytes(person.raw)) or env == {"TERM": "dumb"}
        _leave(person)


def test_charset() -> None:
    assert charset({}) is None and charset({"LANG": "en_US.UTF-8"}) is None
    assert charset({"LANG": "en_US.UTF-8", "LC_ALL": "C"}) == "ascii"
    assert charset({"LANG": "de_DE.ISO-8859-15@euro"}) == "ISO-8859-15"
    assert charset({"LC_CTYPE": "UTF-8", "LANG": "C"}) is None
