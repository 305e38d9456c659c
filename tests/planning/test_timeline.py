"""The forecast's timeline: what must hold whatever the figures, and what was measured with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.planning.macs import EXPERTS, LAYERS, RECORD, Mac
from dsv4_mlx.planning.timeline import Costs, DiskSpeed, Need, token_seconds, tokens_per_second

RESULTS = Path(__file__).parents[2] / "bench" / "results"
COSTS = Costs(before=1e-3, beside=2e-4, expert=1e-4, sync=3e-4, outside=5e-3)
DISK = DiskSpeed(latency=1e-4, speed=5e9, cached=1e10)
EACH = 6

needs = st.builds(
    lambda read, near, known, foreseen: Need(
        EACH - read - min(near, EACH - read), read, min(near, EACH - read), known, foreseen
    ),
    st.integers(0, EACH), st.integers(0, EACH), st.booleans(), st.floats(0, 1),
)  # fmt: skip
layers = st.lists(needs, min_size=1, max_size=8)


def seconds(found: list[Need], costs: Costs = COSTS, disk: DiskSpeed = DISK) -> float:
    return token_seconds(costs, disk, RECORD, found)


def computing(found: list[Need]) -> float:
    layer = COSTS.before + COSTS.sync + COSTS.beside + EACH * COSTS.expert
    return len(found) * layer + COSTS.outside


def reading(found: list[Need]) -> float:
    return sum(need.read * RECORD / DISK.speed + need.cached * RECORD / DISK.cached for need in found)


def test_without_misses_a_token_is_its_computing() -> None:
    found = [Need(EACH)] * 4
    assert seconds(found) == pytest.approx(computing(found))


def test_one_miss_by_hand() -> None:
    """Read beside the shared expert and five loaded ones, then computed."""
    read = DISK.latency + RECORD / DISK.speed
    expected = COSTS.before + COSTS.sync + read + COSTS.expert + COSTS.outside
    assert read > COSTS.beside + 5 * COSTS.expert
    assert seconds([Need(5, 1)]) == pytest.approx(expected)
    hidden = replace(COSTS, beside=1.0)
    assert token_seconds(hidden, DISK, RECORD, [Need(5, 1)]) == pytest.approx(
        COSTS.before + COSTS.sync + 1.0 + 6 * COSTS.expert + COSTS.outside
    )


@given(layers)
def test_neither_work_nor_reading_vanishes(found: list[Need]) -> None:
    """At least as long as either alone, at most as long as one after the other."""
    latency = 2 * len(found) * DISK.latency  # a layer may ask twice: early and late
    assert seconds(found) >= max(computing(found), reading(found)) - 1e-12
    assert seconds(found) <= computing(found) + reading(found) + latency + 1e-12


@given(layers, st.floats(1.01, 10))
def test_slower_is_never_faster(found: list[Need], factor: float) -> None:
    base = seconds(found) - 1e-12
    assert seconds(found, disk=replace(DISK, speed=DISK.speed / factor)) >= base
    assert seconds(found, disk=replace(DISK, latency=DISK.latency * factor)) >= base
    for name in ("before", "beside", "expert", "sync", "outside"):
        assert seconds(found, costs=replace(COSTS, **{name: getattr(COSTS, name) * factor})) >= base


@given(st.integers(1, EACH), st.integers(1, 6))
def test_asking_early_helps(read: int, count: int) -> None:
    late = [Need(EACH - read, read)] * count
    with_latency = 2 * count * DISK.latency
    assert seconds([replace(n, known=True) for n in late]) <= seconds(late) + 1e-12
    assert seconds([replace(n, foreseen=0.5) for n in late]) <= seconds(late) + with_latency


def test_speed_is_the_mean_over_tokens() -> None:
    fast, slow = [Need(EACH)], [Need(0, EACH)]
    both = tokens_per_second(COSTS, DISK, RECORD, [fast, slow])
    assert both == pytest.approx(2 / (seconds(fast) + seconds(slow)))
    with pytest.raises(ValueError, match="no tokens"):
        tokens_per_second(COSTS, DISK, RECORD, [])


def test_memory_of_macs() -> None:
    sizes = [16, 24, 36, 48, 64, 96, 128, 192, 256]
    macs = [Mac("", size, 400, 5) for size in sizes]
    slots = [mac.slots for mac in macs]
    assert slots == sorted(slots) and slots[0] == 0 and slots[-1] == EXPERTS
    for mac in macs:
        held = (mac.slots + mac.page_cache) * LAYERS * RECORD
        assert held < mac.memory * 1e9 and mac.page_cache >= 0


def test_the_measured_error_is_within_a_fifth() -> None:
    """What bench/paging/timing.py found on its machine; a new recording must keep it."""
    report: dict[str, Any] = json.loads((RESULTS / "paging_timing.json").read_text())
    assert len(report["slots"]) == 4
    for row in report["slots"].values():
        assert abs(row["predicted"] / row["measured"] - 1) <= 0.20
        assert row["reads in all, predicted"] == pytest.approx(row["reads in all, counted"], rel=0.06)


def test_the_page_of_predictions_shows_what_was_computed() -> None:
    page = (RESULTS.parents[1] / "docs" / "paging-predictions.md").read_text()
    assert (RESULTS / "paging_predictions.md").read_text().strip() in page
    rows = json.loads((RESULTS / "paging_predictions.json").read_text())["rows"]
    assert [row["machine"].split(", ")[1] for row in rows] == [
        f"{size} GB" for size in (24, 36, 48, 64, 96, 128, 192)
    ]
    for row in rows:
        low, high = row["tokens_per_second"]["reference"]
        assert 0 < low <= high <= row["tokens_per_second"]["kernels"][1]
