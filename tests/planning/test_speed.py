"""Predicted speed: what must hold whatever the figures, and what was measured with its timeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.paging.hit_table import row as simulated_row
from bench.paging.predict import rows, table
from bench.paging.traces import SKEWED, drawn
from dsv4_mlx.machine.macs import MACS
from dsv4_mlx.planning.candidates import Candidate, candidates, flash_config
from dsv4_mlx.planning.fit import MemoryBudget, budget_of_mac, fit
from dsv4_mlx.planning.plan import plan
from dsv4_mlx.planning.speed import (
    CACHED_RECORDS,
    CHUNKS_TOGETHER,
    HITS,
    KERNELS,
    REFERENCES,
    TILE,
    ComputePath,
    Costs,
    DiskSpeed,
    Need,
    Speeds,
    predict,
    shares,
    simulated,
    token_seconds,
    tokens_per_second,
)

RESULTS = Path(__file__).parents[2] / "bench" / "results"
COSTS = Costs(before=1e-3, beside=2e-4, expert=1e-4, sync=3e-4, outside=5e-3)
DISK = DiskSpeed(latency=1e-4, speed=5e9, cached=1e10)
EACH, RECORD = 6, 13_369_344
FLASH, CONFIG = candidates(flash_config()), flash_config()

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


@given(
    st.sampled_from(FLASH), st.integers(8, 600), st.floats(1e10, 2e12), st.floats(1e6, 1e11),
    st.integers(0, 1 << 37), st.sampled_from([KERNELS, REFERENCES]),
)  # fmt: skip
def test_the_bound_is_never_below_the_prediction(
    way: Candidate, gib: int, memory: float, disk: float, page_cache: int, path: ComputePath
) -> None:
    """Machines x recipes x slots. The bound knows bytes and speeds alone, and here it is counted anew."""
    found = fit(way.stored, CONFIG, MemoryBudget(gib << 30))
    said = predict(way, found, CONFIG, Speeds(memory, disk), 2, page_cache, path)
    if said is None:
        assert found.placement == "too large"
        return
    assert said.low is not None and said.high is not None and said.bound is not None
    assert 0 < said.low <= said.high * (1 + 1e-12)  # the same sum in another order
    assert said.high <= said.bound <= memory / way.touched
    if found.placement == "resident":
        assert said.low == said.high and said.missed == (0, 0)
        assert said.bound == pytest.approx(memory / way.touched)
    assert (said.prefill is None) == (path is REFERENCES)


@given(st.floats(0, 1), st.floats(0, 1))
def test_shares_are_shares(loaded: float, cached: float) -> None:
    chance, as_simulated = shares(loaded, cached)
    for one in (chance, as_simulated):
        assert 0 <= one.hits <= 1 and one.cached >= 0 and one.hits + one.cached <= 1 + 1e-9
    assert as_simulated.hits >= chance.hits and as_simulated.read <= chance.read + 1e-9


def test_every_term_costs_time() -> None:
    """Bytes, launches, disk: a prediction is slower with more of each, and equals a sum by hand where all
    experts are in memory."""
    native, mac = FLASH[1], budget_of_mac(256 << 30)
    found = fit(native.stored, CONFIG, mac)
    said = predict(native, found, CONFIG, Speeds(819e9), 2)
    assert found.placement == "resident" and said is not None and said.high is not None
    moved = native.touched + KERNELS.moved + 23_499_776  # the ledger's rows at 4,096 tokens
    by_hand = moved / (0.75 * 819e9) + 1_015 * 2.6e-6 + 12e-3 + 0.3e-3
    assert 1 / said.high == pytest.approx(by_hand, rel=0.01)
    paged = fit(native.stored, CONFIG, MemoryBudget(48 << 30))

    def at(memory: float = 3e11, disk: float = 5e9, path: ComputePath = KERNELS) -> float:
        one = predict(native, paged, CONFIG, Speeds(memory, disk), 2, path=path)
        assert one is not None and one.high is not None
        return one.high

    assert at() > max(at(memory=2e11), at(disk=4e9), at(path=REFERENCES))


def test_what_is_counted_is_the_ledgers() -> None:
    """Launches and bytes of V4-Flash's step at 4,096 tokens, in planning as in bench/results."""
    ledger = json.loads((RESULTS / "ledger.json").read_text())["contexts"]["4096"]
    stored = ledger["decode"]["kernels"]["bytes_weights"]
    for name, path in (("kernels", KERNELS), ("reference", REFERENCES)):
        step, chunk = ledger["decode"][name], ledger["prefill"][name]
        assert (path.launches, path.chunk_launches) == (step["dispatches"], chunk["dispatches"])
        assert path.moved == step["bytes_other"] + step["bytes_weights"] - stored
    assert FLASH[1].touched == pytest.approx(stored, rel=0.01)
    assert FLASH[1].dense.shared == pytest.approx(1.116e9, rel=0.01)
    assert FLASH[1].dense.head == pytest.approx(1.06e9, rel=0.01)


def test_constants_are_those_of_the_code_they_describe() -> None:
    from dsv4_mlx.ops.kernels.expert_ffn import TILE as tile
    from dsv4_mlx.paging.pager import CHUNK, CHUNKS_MEMORY

    values = CONFIG.hidden_size * (2 * CONFIG.streams + 2 * CONFIG.experts_per_token + 4)
    assert (tile, CHUNKS_MEMORY // (CHUNK * values * 4)) == (TILE, CHUNKS_TOGETHER)


def test_simulated_shares_are_the_simulators() -> None:
    """As recorded, through their points, and rising between them."""
    recorded = json.loads((RESULTS / "paging_hit_table.json").read_text())["rows"]
    assert [(row["slots"], row["hits"], tuple(row["cached"])) for row in recorded] == list(HITS[1:-1])
    for slots, hits, cached in HITS[1:]:
        for records, caught in zip(CACHED_RECORDS, cached, strict=True):
            assert simulated(slots / 256, records / 256) == pytest.approx((hits, caught))
    rising = [simulated(i / 300)[0] for i in range(301)]
    assert sorted(rising) == rising


def test_a_row_of_the_simulators_table() -> None:
    """Simulated again, over fewer layers: the recorded rows are within what a few layers differ."""
    trace, known = drawn(SKEWED, 1400, 4), [False] * 4
    layers = [trace.layer(number) for number in range(4)]
    for slots in (8, 64):
        found = simulated_row(slots, layers, known)
        recorded = next(one for one in HITS if one[0] == slots)
        assert found["hits"] == pytest.approx(recorded[1], abs=0.08)


def test_the_measured_error_is_within_a_fifth() -> None:
    """What bench/paging/timing.py found on its machine; a new recording must keep it."""
    report: dict[str, Any] = json.loads((RESULTS / "paging_timing.json").read_text())
    assert len(report["slots"]) == 4
    for row in report["slots"].values():
        assert abs(row["predicted"] / row["measured"] - 1) <= 0.20
        assert row["reads in all, predicted"] == pytest.approx(row["reads in all, counted"], rel=0.06)


def test_the_page_of_predictions_is_computed_and_says_what_plan_says() -> None:
    page = (RESULTS.parents[1] / "docs" / "paging-predictions.md").read_text()
    found = rows()
    recorded = json.loads((RESULTS / "paging_predictions.json").read_text())["rows"]
    assert recorded == json.loads(json.dumps(found))
    assert (RESULTS / "paging_predictions.md").read_text() == table(found)
    assert table(found).strip() in page
    for mac, row in zip(MACS, found, strict=True):
        for number, disk in enumerate(mac.disk):
            speeds = Speeds(mac.bandwidth, disk)
            said = plan(FLASH, CONFIG, budget_of_mac(mac.memory), speeds).options[1]
            assert said.prediction is not None and said.fit.slots == row["slots"]
            assert round(said.prediction.high or 0, 2) == row["tokens_per_second"]["kernels"][number]
            assert round(said.prediction.bound or 0, 2) == row["bound"][number]
