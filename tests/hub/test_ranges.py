"""A file comes in several ranges at a time; what is there for good is never asked for again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hub.conftest import QUICK
from hub.fake_hub import REPOSITORY, Asked, Hub, serving

from dsv4_mlx.checkpoint.identity import STATE
from dsv4_mlx.errors import MachineError
from dsv4_mlx.hub import ranges
from dsv4_mlx.hub.fetch import Fetcher
from dsv4_mlx.hub.remote import FetchStopped, look

NAME = "large.safetensors"
SCRIPT = Path(__file__).parent / "range_helpers.py"
ROOT = Path(__file__).parents[2]


def hub_of(folder: Path, size: int) -> Hub:
    """One file without a block of zeros."""
    folder.mkdir()
    (folder / NAME).write_bytes(np.random.default_rng(0).bytes(size))
    return Hub(folder)


def marked(folder: Path, size: int) -> list[tuple[int, int]]:
    """First byte and end of the blocks that the journal holds for there: its last bytes are their marks."""
    journal = folder / STATE / "large.safetensors.blocks"
    blocks = -(-size // ranges.BLOCK)
    marks = journal.read_bytes()[-blocks:] if journal.exists() else bytes(blocks)
    return [(i * ranges.BLOCK, min(size, (i + 1) * ranges.BLOCK)) for i in range(blocks) if marks[i]]


def begun(folder: Path, whole: bytes) -> int:
    """Checks that marked blocks are right; how many others have bytes, which are then wiped out."""
    part = folder / STATE / "large.safetensors.part"
    right, found = marked(folder, len(whole)), 0
    if not part.exists():
        return 0
    with part.open("r+b") as file:
        for start in range(0, len(whole), ranges.BLOCK):
            file.seek(start)
            block = file.read(ranges.BLOCK)
            if (start, start + len(block)) in right:
                assert block == whole[start : start + len(block)]
            elif block.count(0) < len(block):
                found += 1
                file.seek(start)
                file.write(bytes(len(block)))
    return found


def asked_again(hub: Hub, known: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of the blocks that were known to be there, those that were asked for."""
    return [(a, b) for a, b in known if any(start < b and a < end for _, start, end in hub.asked)]


def fetcher(hub: Hub, folder: Path, advance: Callable[[int], None], tries: int = QUICK.tries) -> Fetcher:
    remote = look(REPOSITORY, endpoint=hub.endpoint, retry=replace(QUICK, tries=tries))
    return Fetcher(remote, folder, advance)


@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 50 * (1 << 16) + 7])
def test_any_size_is_the_same_bytes(size: int, tmp_path: Path) -> None:
    seen: list[int] = []
    with serving(hub_of(tmp_path / "served", size)) as hub:
        path = fetcher(hub, tmp_path / "a", seen.append).fetch(NAME)
        assert path.read_bytes() == hub.files[NAME] and sum(seen) == size
        assert hub.sent.get(NAME, 0) == size, "nothing comes twice"
        assert sorted(p.name for p in (tmp_path / "a" / STATE).iterdir()) == [f"{NAME}.ok"]


def test_several_ranges_are_on_their_way(tmp_path: Path) -> None:
    hub = hub_of(tmp_path / "served", 64 * (1 << 16))
    hub.delay = 0.002
    with serving(hub):
        fetcher(hub, tmp_path / "a", lambda count: None).fetch(NAME)
    assert ranges.AT_ONCE >= hub.most > ranges.AT_ONCE // 2
    assert {end - start for _, start, end in hub.asked} == {ranges.SPAN * ranges.BLOCK}


@pytest.mark.parametrize("seed", range(2))
def test_stopped_at_any_byte_and_connections_dropped(seed: int, tmp_path: Path) -> None:
    """Runs end anywhere; what was marked is not asked for again, and few blocks were under way."""
    rng, size, stops = random.Random(seed), 60 * (1 << 16) + 5, 8
    hub, folder = hub_of(tmp_path / "served", size), tmp_path / "a"
    hub.drop = lambda: rng.random() < 0.02
    with serving(hub):
        for run in range(stops + 1):
            known, until = marked(folder, size), rng.randrange(2 * size // stops)
            hub.asked.clear()
            one = stopping(hub, folder, until if run < stops else 2 * size)
            try:
                one.fetch(NAME)
            except FetchStopped:
                assert run < stops
            assert not asked_again(hub, known)
            assert begun(folder, hub.files[NAME]) <= ranges.AT_ONCE
            if (folder / NAME).exists():
                break
    assert (folder / NAME).read_bytes() == hub.files[NAME]


def stopping(hub: Hub, folder: Path, until: int) -> Fetcher:
    """Stops when so many bytes have come; what was there at the beginning is counted in the first call."""
    counts: list[int] = []

    def come(count: int) -> None:
        counts.append(count)
        if sum(counts[1:]) > until:
            one.stop.set()

    one = fetcher(hub, folder, come)
    return one


def test_a_dropped_range_goes_on_at_its_byte(tmp_path: Path) -> None:
    """A server that gives up after 40,000 bytes of any answer; each is fewer than a block."""

    def cut(asked: Asked) -> None:
        asked.cut = 40_000 if asked.name == NAME and len(asked.body) > 40_000 else None

    hub = hub_of(tmp_path / "served", 20 * (1 << 16))
    hub.fault = cut
    with serving(hub):
        fetcher(hub, tmp_path / "a", lambda count: None, tries=1 + 3 * ranges.AT_ONCE).fetch(NAME)
    assert (tmp_path / "a" / NAME).read_bytes() == hub.files[NAME] and hub.sent[NAME] == len(hub.files[NAME])
    with serving(hub), pytest.raises(MachineError, match="can't be fetched"):
        fetcher(hub, tmp_path / "b", lambda count: None, tries=1).fetch(NAME)


@pytest.mark.parametrize("change", ["title", "short", "no part", "part of another size", "no journal"])
def test_a_journal_that_is_not_of_this_file_is_not_believed(change: str, tmp_path: Path) -> None:
    hub, state = hub_of(tmp_path / "served", 10 * (1 << 16)), tmp_path / "a" / STATE
    part, journal = state / f"{NAME}.part", state / f"{NAME}.blocks"
    with serving(hub):
        one = fetcher(hub, tmp_path / "a", lambda count: None)
        state.mkdir(parents=True)
        ranges.PartFile(part, one.file(NAME)).close()
        text = journal.read_bytes()
        journal.write_bytes(text[:-10] + b"\1" * 10)  # all is there, it says
        assert one.missing(NAME) == 0
        match change:
            case "title":
                journal.write_bytes(b"0" + journal.read_bytes()[1:])
            case "short":
                journal.write_bytes(journal.read_bytes()[:-1])
            case "no part":
                part.unlink()
            case "part of another size":
                os.truncate(part, 5)
            case _:
                journal.unlink()
        assert one.missing(NAME) == len(hub.files[NAME])
        assert one.fetch(NAME).read_bytes() == hub.files[NAME] and hub.sent[NAME] == len(hub.files[NAME])


def test_a_server_that_knows_no_ranges_sends_it_in_one(tmp_path: Path) -> None:
    """Also where part of it is there, and after a connection dropped."""

    def whole(asked: Asked) -> None:
        if asked.status == 206:
            asked.status, asked.start, asked.body = 200, 0, hub.files[NAME]
            asked.cut = 100_000 if asked.number % 3 == 0 else None

    hub, seen = hub_of(tmp_path / "served", 40 * (1 << 16)), list[int]()
    with serving(hub):
        one = fetcher(hub, tmp_path / "a", lambda count: one.stop.set() if count < 60_000 else None)
        with pytest.raises(FetchStopped):
            one.fetch(NAME)
        hub.fault = whole
        fetcher(hub, tmp_path / "a", seen.append).fetch(NAME)
    assert (tmp_path / "a" / NAME).read_bytes() == hub.files[NAME] and sum(seen) == len(hub.files[NAME])


def test_another_part_than_was_asked_for_is_not_taken(tmp_path: Path) -> None:
    def other(asked: Asked) -> None:
        if asked.start and asked.number % 2:
            asked.headers["Content-Range"] = f"bytes {asked.start - 1}-{asked.start + len(asked.body) - 2}/9"
            asked.body = hub.files[NAME][asked.start - 1 :][: len(asked.body)]

    hub = hub_of(tmp_path / "served", 20 * (1 << 16))
    hub.fault = other
    with serving(hub):
        fetcher(hub, tmp_path / "a", lambda count: None, tries=30).fetch(NAME)
    assert (tmp_path / "a" / NAME).read_bytes() == hub.files[NAME]


def test_ranges_that_fail_alike_are_told_of_once(tmp_path: Path) -> None:
    def away(asked: Asked) -> None:
        asked.status, asked.body, asked.headers = 503, b"", {}

    said: list[str] = []
    hub = hub_of(tmp_path / "served", 40 * (1 << 16))
    with serving(hub):
        remote = look(REPOSITORY, endpoint=hub.endpoint, retry=replace(QUICK, tell=said.append))
        hub.fault = away
        with pytest.raises(MachineError, match="503"):
            Fetcher(remote, tmp_path / "a", lambda count: None).fetch(NAME)
    assert len(said) == 1 and "trying again in" in said[0]


@pytest.mark.long
def test_400_mb_with_a_range_cut_every_second_and_20_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """At 100 MB/s, with the blocks of a user's download."""
    monkeypatch.undo()
    size, kills, rng = 400_000_000, 20, random.Random(0)
    hub, folder = hub_of(tmp_path / "served", size), tmp_path / "a"
    hub.rate = 100e6
    cuts, last, under_way = 0, time.monotonic(), []

    def drop() -> bool:
        nonlocal cuts, last
        due = hub.sent.get(NAME, 0) > 0 and time.monotonic() - last > 1
        if due:
            cuts, last = cuts + 1, time.monotonic()
        return due

    hub.drop = drop
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    with serving(hub):
        for run in range(kills + 1):
            known, before = marked(folder, size), hub.sent.get(NAME, 0)
            hub.asked.clear()
            words = [sys.executable, str(SCRIPT), hub.endpoint, str(folder)]
            process = subprocess.Popen(words, env=environment)
            until = before + rng.randrange(2 * size // kills)
            while run < kills and hub.sent.get(NAME, 0) < until and process.poll() is None:
                Event().wait(0.01)
            if run < kills:
                assert process.poll() is None, "it was done before it was killed"
                process.kill()
            assert process.wait(timeout=120) == (-9 if run < kills else 0)
            assert not asked_again(hub, known)
            under_way.append(begun(folder, hub.files[NAME]))
    assert (folder / NAME).read_bytes() == hub.files[NAME]
    assert max(under_way) <= ranges.AT_ONCE and hub.most > ranges.AT_ONCE // 2 and cuts >= 3
    record_property("ranges at once", hub.most)
    record_property("cuts", cuts)
    record_property("MB sent", round(hub.sent[NAME] / 1e6))
    record_property("blocks under way at a kill", under_way)
