"""Every command on Macs of four sizes: it works, and what it does to the machine is what a Mac wants."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import Checkpoints
from hub.fake_hub import REPOSITORY, Hub, serving
from server.client import call, until

from dsv4_mlx.cli.main import COMMANDS
from pretend_mac import GIB, MACS, Mac, Note, notes

ANSWER = ("--max-tokens", "8", "--think", "off", "--temperature", "0")


def lines(official: Path, folder: Path) -> list[list[str]]:
    """Command lines of a moment. The first makes the model that the others use."""
    model = str(folder / "model")
    return [
        ["convert", str(official), model, "--no-exclude-from-backup"],
        ["info", model],
        ["models", str(folder)],
        ["plan", "--for", "64GB"],
        ["generate", model, "-p", "Why?", *ANSWER],
        ["generate", model, "-p", "Why?", *ANSWER, "--expert-memory", "3x"],
        ["chat", model, "-p", "Why?", *ANSWER],
    ]


def slow_lines(official: Path, folder: Path) -> list[list[str]]:
    model, tokens, text = str(folder / "model"), folder / "tokens.json", folder / "text.txt"
    tokens.write_text("[[1, 2, 3, 4, 5, 6]]")
    text.write_text("What an attention window holds is what a row of it sees. " * 6)
    return [
        ["verify", model, "--against", str(official)],
        ["plan", model, "--dir", str(folder)],
        ["doctor", "--dir", str(folder)],
        ["generate", str(official), "-p", "Why?", *ANSWER, "--expert-memory", "100%"],
        ["logits", model, "--tokens", str(tokens), "--out", str(folder / "logits.npz")],
        ["eval", model, "--text", str(text), "--tokens", "20"],
        ["bench", model, "--context", "64", "--decode", "4"],
        ["demo", "--dir", str(folder / "demo")],
    ]


# No kernel runs here: with --ops auto it would be right to refuse.
CHECK = ["check", "demo", "--quick", "--ops", "reference"]


def run(mac: Mac, folder: Path, commands: list[list[str]], **environment: str) -> tuple[list[Note], str]:
    """What was noted while one process ran the commands, each of which succeeded, and all that it wrote."""
    record = folder / f"record-{len(list(folder.glob('record-*')))}"
    done = subprocess.run(
        [sys.executable, "-m", "pretend_mac.commands", json.dumps(commands)],
        env=mac.environment(record, folder / "home") | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    codes = [note.facts for note in notes(record, "ended")]
    assert [facts["command"] for facts in codes if facts["code"] != 0] == [], said
    assert len(codes) == len(commands) and done.returncode == 0, said
    return notes(record), said


def of(found: list[Note], what: str) -> list[Note]:
    return [note for note in found if note.what == what]


def within(found: list[Note], name: str) -> list[list[Note]]:
    """What was noted during each run of a command."""
    runs: list[list[Note]] = []
    inside = False
    for note in found:
        if note.what == "begun":
            inside = note.facts["command"][0] == name
            runs += [[]] if inside else []
        elif inside:
            runs[-1].append(note)
    return runs


def hold(mac: Mac, found: list[Note]) -> None:
    """What is true of every process on every Mac."""
    assert of(found, "too large") == []
    assert of(found, "linux") == []
    imported = of(found, "mlx imported")
    assert imported
    for note in imported:
        assert note.facts["switches"]["MLX_ENABLE_TF32"] == "0"
    for note in of(found, "wired"):
        limit, active = note.facts["limit"], note.facts["active"]
        assert 0 < limit <= active
        assert limit <= min(mac.working_set * GIB, mac.memory * GIB * 0.85)


def helpers(found: list[Note]) -> int:
    """How often a helper that keeps the Mac awake was started."""
    return [note.facts["command"][0] for note in of(found, "program")].count("/usr/bin/caffeinate")


ONE, OTHERS = 24, [pytest.param(gib, marks=pytest.mark.long) for gib in MACS if gib != 24]
HELD = {"info": 0, "chat": 2}  # how often the Mac is kept awake; a chat is for loading, and for its answer
WIRES = {"generate", "chat", "logits", "bench", "demo"}  # once each: for their one layout of banks


@pytest.mark.parametrize("gib", [ONE, *OTHERS])
def test_every_command(gib: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    official = checkpoints.official("small")
    commands = lines(official, tmp_path)
    if gib != ONE:
        commands += slow_lines(official, tmp_path)
    if gib == 128:
        commands.append(CHECK)  # a minute and a half
    found, _ = run(MACS[gib], tmp_path, commands)
    hold(MACS[gib], found)
    for name in {command[0] for command in commands}:
        for during in within(found, name):
            held = HELD.get(name, 1)
            assert (name, helpers(during), len(of(during, "sleep allowed"))) == (name, held, held)
            if name in WIRES:
                assert (name, len(of(during, "wired"))) == (name, 1)
    assert not any(of(during, "wired") for during in within(found, "plan"))
    past_cache = [
        note.facts["command"] for during in within(found, "convert") for note in of(during, "fcntl")
    ]
    assert "F_NOCACHE" in past_cache


def test_no_command_is_forgotten(tmp_path: Path) -> None:
    tried = {command[0] for command in [*lines(tmp_path, tmp_path), *slow_lines(tmp_path, tmp_path), CHECK]}
    elsewhere = {"serve", "download", "connect"}  # below
    assert tried | elsewhere == {command.__name__ for command in COMMANDS} | {"eval"}


@pytest.mark.parametrize("gib", [ONE, *OTHERS])
def test_under_pressure_memory_goes_back_and_the_answer_stays(gib: int, tmp_path: Path) -> None:
    """Levels 1, 2, 4 and 1 again, then the same question without any."""
    mac = replace(MACS[gib], pressure=(1, 1, 2, 2, 4, 4, 1), haste=3000.0)
    asked = ["generate", "demo", "-p", "What is the sliding window?", "--temperature", "0", "--think", "off",
             "--expert-memory", "6x", "--max-tokens", "60"]  # fmt: skip
    found, said = run(mac, tmp_path, [asked, asked])
    hold(mac, found)
    first, second = within(found, "generate")
    assert {note.facts["level"] for note in of(first, "pressure")} == {1, 2, 4}
    answers = [part.split("(--expert-memory 6x)\n", 1)[1] for part in said.split("$ dsv4-mlx generate")[1:]]
    assert answers[0] == answers[1] != ""
    assert len(of(second, "wired")) == 1
    at_first, *wired = [note.facts["limit"] for note in of(first, "wired")]
    least = wired.index(min(wired))
    assert 0 < least < len(wired) - 1  # down, and up again
    assert wired[: least + 1] == sorted(wired[: least + 1], reverse=True) and wired[least:] == sorted(
        wired[least:]
    )
    assert at_first == pytest.approx(
        of(second, "wired")[0].facts["limit"], rel=0.01
    )  # before any session: the model alone


@pytest.mark.parametrize("gib", [ONE, *OTHERS])
def test_serve_keeps_the_mac_awake_while_it_answers(gib: int, tmp_path: Path) -> None:
    record = tmp_path / "record"
    process = subprocess.Popen(
        [sys.executable, "-m", "dsv4_mlx", "serve", "demo", "--port", "0", "--context", "2048"],
        env=MACS[gib].environment(record, tmp_path / "home"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())):
            assert process.poll() is None
        port = int(found[1])
        assert until(lambda: call(port, "GET", "/health").status == 200, 60)
        assert helpers(notes(record)) == 0
        body = {"messages": [{"role": "user", "content": "What is CSA?"}], "max_tokens": 8}
        assert call(port, "POST", "/v1/chat/completions", body).status == 200
        assert helpers(notes(record)) == 1
        assert notes(record, "sleep allowed") == []  # an agent asks again within the minute
        from_connect = subprocess.run(
            [sys.executable, "-m", "dsv4_mlx", "connect", "opencode", "--url", f"http://127.0.0.1:{port}"],
            env=MACS[gib].environment(record, tmp_path / "home"),
            capture_output=True,
            check=False,
        )
        assert from_connect.returncode == 0, from_connect.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.communicate()
    hold(MACS[gib], notes(record))
    assert len(notes(record, "wired")) == len(notes(record, "sleep allowed")) == 1


def test_download(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with serving(Hub(checkpoints.official("small"))) as hub:
        surroundings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        commands = [["download", REPOSITORY, str(tmp_path / "official"), "--exclude-from-backup"]]
        found, _ = run(MACS[ONE], tmp_path, commands, **surroundings)
    hold(MACS[ONE], found)
    programs = [note.facts["command"][:2] for note in of(found, "program")]
    assert ["tmutil", "addexclusion"] in programs
    assert helpers(found) == len(of(found, "sleep allowed")) == 1


def test_what_a_mac_refuses_is_refused(tmp_path: Path) -> None:
    """The stand-in itself: a read of 2 GiB, a page of /proc, a wired limit above the working set."""
    code = """
import os, mlx.core as mx
for trial, of in (os.pread, (0, 2**31, 0)), (open, ("/proc/meminfo",)), (mx.set_wired_limit, (17 << 30,)):
    try:
        trial(*of)
    except (OSError, ValueError) as error:
        print(type(error).__name__, getattr(error, "errno", ""))
"""
    record = tmp_path / "record"
    environment = MACS[24].environment(record, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n") == ["OSError 22", "FileNotFoundError 2", "ValueError ", ""], done.stderr
    assert {"too large", "linux", "wired"} <= {note.what for note in notes(record)}
