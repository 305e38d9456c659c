"""`--expert-memory`: what each spelling means, what fits, and what is refused before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paging.paged_model import EXPERTS, Model

from dsv4_mlx.cli.main import run
from dsv4_mlx.errors import DoesNotFit, Dsv4Error, UsageError
from dsv4_mlx.paging.sizing import Experts, MemoryRequest, choose, parse

FLASH = Experts(layers=43, count=256, each=6, record_bytes=13_369_344, drafts=1)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("auto", MemoryRequest()),
        ("24GB", MemoryRequest("bytes", 24e9, "24GB")),
        ("1.5GiB", MemoryRequest("bytes", 1.5 * 2**30, "1.5GiB")),
        ("800 mb", MemoryRequest("bytes", 8e8, "800 mb")),
        ("25%", MemoryRequest("share", 0.25, "25%")),
        ("6x", MemoryRequest("slots", 6, "6x")),
    ],
)
def test_spellings(text: str, asked: MemoryRequest) -> None:
    assert parse(text) == asked


@pytest.mark.parametrize(
    "text", ["", "24", "24XB", "-3x", "1.5x", "101%", "x", "auto6x", "nan%", "٣x", "1e3MB"]
)
def test_what_is_no_spelling_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--expert-memory"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("100%", 256),
        ("50%", 128),
        ("10%", 25),
        ("1x", 1),
        ("6x", 6),
        ("300x", 256),
        ("64GB", 111),
        ("1TB", 256),
    ],
)
def test_slots_of_the_true_size(text: str, slots: int) -> None:
    assert choose(parse(text), FLASH, 10**12).slots == slots


def test_the_least_is_named() -> None:
    for text in ("0x", "0.3%", "500MB"):
        with pytest.raises(UsageError, match="less than one expert per layer") as caught:
            choose(parse(text), FLASH, 10**12)
        assert "1x, 588.3 MB" in str(caught.value)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(DoesNotFit, match="needs 63.9 GB, this machine has 40.0 GB") as caught:
        choose(parse("111x"), FLASH, 40 * 10**9)
    assert caught.value.next is not None
    fits = int(caught.value.next.split()[1].removesuffix("x"))
    assert choose(parse(f"{fits}x"), FLASH, 40 * 10**9).slots == fits
    with pytest.raises(DoesNotFit):
        choose(parse(f"{fits + 1}x"), FLASH, 40 * 10**9)
    with pytest.raises(DoesNotFit, match="the least is one per layer"):
        choose(MemoryRequest(), FLASH, 10**8)


@given(st.integers(0, 300 * 10**9), st.integers(0, 20 * 10**9))
def test_auto_never_exceeds_what_is_there(room: int, reserve: int) -> None:
    try:
        chosen = choose(MemoryRequest(), FLASH, room, reserve)
    except DoesNotFit:
        assert room < FLASH.bytes(1)
        return
    assert chosen.nbytes <= room
    assert chosen.resident == (FLASH.bytes(256) <= room)
    more = FLASH.bytes(chosen.slots + 1)
    assert chosen.resident or more > room - reserve  # and leaves nothing unused
    assert all(chosen.slots_of(block) >= 1 for block in ("layers.0", "mtp.0"))


@given(st.floats(0, 3e11))
def test_a_size_is_not_exceeded(size: float) -> None:
    try:
        chosen = choose(MemoryRequest("bytes", size, "size"), FLASH, 10**12)
    except Dsv4Error:
        assert size < FLASH.bytes(1)
        return
    assert chosen.nbytes <= max(size, FLASH.bytes(1))


def test_the_chat_says_what_it_chose(model: Model) -> None:
    asked = [sys.executable, "-m", "dsv4_mlx", "chat", str(model.folder), "-p", "hi", "--think", "off"]
    options = ["--max-tokens", "2", "--expert-memory", "3x", "--context", "512"]
    done = subprocess.run(
        [*asked, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert f"experts: 3 of {EXPERTS} experts of each layer in memory" in done.stderr
    assert "experts:" not in done.stdout


def test_the_command_line_says_what_it_chose(
    model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.json").write_text("[[1, 2, 3]]")
    command = ["logits", str(model.folder), "--tokens", str(tmp_path / "t.json"), "--out"]
    assert run([*command, str(tmp_path / "a.npz"), "--expert-memory", "3x", "--expert-threads", "2"]) == 0
    captured = capfd.readouterr()
    assert f"experts: 3 of {EXPERTS} experts of each layer in memory" in captured.err
    assert captured.out == ""
    for wrong, message in (("0x", "the least is --expert-memory 1x"), ("many", "expected auto")):
        assert run([*command, str(tmp_path / "b.npz"), "--expert-memory", wrong]) == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "b.npz").exists()
