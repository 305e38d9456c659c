"""Who leaves: the rules of a policy, and its hit rates over traces beside LRU and what can't be beaten."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from bench.paging import policies, traces
from bench.paging.record import CHECKPOINT, record, text
from bench.paging.rejected import Gaps, LruPolicy, Often
from bench.paging.replay import Belady, hit_rate, misses
from bench.paging.traces import SKEWED, Drawn, Trace, drawn, load, scan
from dsv4_mlx.paging.expert_run import ExpertRun
from dsv4_mlx.paging.policy import OPEN, DuelPolicy, Policy
from dsv4_mlx.paging.slots import SlotTable

MAKERS: list[Callable[[int], Policy]] = [LruPolicy, DuelPolicy, Often, Gaps]
TOKENS, WARM = 2500, 800
BURSTY = Drawn(lasting=0.2, topic=1.2, topic_tokens=100, near=1.2, near_tokens=10)


def random_steps(seed: int, experts: int, each: int, count: int = 60) -> list[list[int]]:
    r = random.Random(seed)
    return [sorted(r.sample(range(experts), r.randint(1, each))) for _ in range(count)]


def turns(steps: Sequence[Sequence[int]], slots: int, policy: Policy, experts: int) -> list[int]:
    """Reads per step by the code that pages, every read ending at once."""
    table, counts = SlotTable(slots, experts), []
    for needed in steps:
        turn, read = ExpertRun(table, policy, needed), 0
        while not turn.done:
            begun = turn.reads()
            read += len(begun)
            for expert in begun:
                table.filled(expert)
            if group := turn.group():
                table.finish(table.use(group))
        counts.append(read)
    return counts


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("slots", [3, 4, 7, 11])
def test_replay_does_what_paging_does(make: Callable[[int], Policy], slots: int) -> None:
    steps = random_steps(slots, 12, 3)
    assert misses(steps, slots, make(12)) == turns(steps, slots, make(12), 12)


@pytest.mark.parametrize("slots", [1, 2])
def test_reads_in_groups(slots: int) -> None:
    """With fewer slots than a step needs the groups may be cut otherwise; reads stay close."""
    steps = random_steps(slots, 12, 4)
    ours, paged = sum(misses(steps, slots, LruPolicy(12))), sum(turns(steps, slots, LruPolicy(12), 12))
    assert abs(ours - paged) <= 0.1 * paged


def fewest(steps: Sequence[Sequence[int]], slots: int) -> int:
    """The least number of reads, by trying everything."""

    @cache
    def rest(now: int, loaded: frozenset[int]) -> int:
        if now == len(steps):
            return 0
        needed = frozenset(steps[now])
        absent = len(needed - loaded)
        spare = len(loaded | needed) - slots
        kept = loaded - needed
        if spare <= 0:
            return absent + rest(now + 1, loaded | needed)
        return absent + min(rest(now + 1, needed | (kept - gone)) for gone in subsets(kept, spare))

    return rest(0, frozenset())


def subsets(items: frozenset[int], size: int) -> list[frozenset[int]]:
    if size == 0:
        return [frozenset()]
    return [
        frozenset([e]) | more
        for e in items
        for more in subsets(frozenset(i for i in items if i > e), size - 1)
    ]


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_belady_cannot_be_beaten(seed: int, slots: int) -> None:
    steps = random_steps(seed, 6, 2, 9)
    assert sum(misses(steps, slots, Belady(6, steps))) == fewest(steps, slots)


@pytest.mark.parametrize("make", MAKERS)
def test_victims_are_candidates_and_the_same_every_time(make: Callable[[int], Policy]) -> None:
    def played() -> list[int]:
        r, policy, victims = random.Random(3), make(20), []
        for _ in range(400):
            policy.step(r.sample(range(20), 4))
            candidates = r.sample(range(20), r.randint(1, 16))
            victims.append(policy.victim(candidates))
            assert victims[-1] in candidates
        return victims

    assert played() == played()


def test_a_duel_keeps_bounded_books() -> None:
    """Over a long answer in which some experts are never needed again."""
    policy, r = DuelPolicy(64), random.Random(0)
    for _ in range(30_000):
        policy.step([r.randrange(32)])
        policy.victim([e for e in range(64) if r.random() < 0.5] or [0])
    assert len(policy._open) <= OPEN and max(map(len, policy._waiting)) <= 2 * OPEN + 1
    assert max(policy._often) < float("inf")


def rates(trace: Trace, share: float, warm: int = WARM) -> dict[str, float]:
    slots = max(1, round(share * trace.experts))
    found = {name: hit_rate(trace, slots, policies.POLICIES[name], warm) for name in ("lru", "duel")}
    return found | {"belady": hit_rate(trace, slots, None, warm)}


@pytest.mark.parametrize("share", policies.SHARES)
def test_skewed_routing(share: float) -> None:
    found = rates(drawn(SKEWED, TOKENS, 1), share)
    assert found["duel"] - found["lru"] >= 0.2 * (found["belady"] - found["lru"]) > 0


@pytest.mark.parametrize("share", policies.SHARES)
def test_a_scan(share: float) -> None:
    found = rates(scan(TOKENS), share)
    assert found["lru"] == 0 and found["duel"] >= 0.5 * found["belady"] > 0


@pytest.mark.parametrize("share", policies.SHARES)
@pytest.mark.parametrize("how", [SKEWED, BURSTY], ids=["skewed", "bursty"])
def test_never_far_below_lru(how: Drawn, share: float) -> None:
    """Bursty routing is LRU's own: what was used last is used next."""
    found = rates(drawn(how, TOKENS, 1, seed=7), share)
    assert found["duel"] >= found["lru"] - 0.01


@pytest.mark.parametrize("share", policies.SHARES)
def test_the_demo_models_routing(share: float) -> None:
    trace = load(policies.RECORDED)
    assert trace.ids.shape == (8000, 5, 2) and trace.experts == 8
    found = rates(Trace("part", 8, trace.ids[:TOKENS]), share)
    assert found["duel"] >= found["lru"] - 0.01
    if share == 0.5:
        assert found["duel"] - found["lru"] >= 0.15 * (found["belady"] - found["lru"])


def test_traces_are_kept_as_they_are(tmp_path: Path) -> None:
    trace = drawn(SKEWED, 20, 2)
    traces.save(trace, tmp_path / "t.npz")
    again = load(tmp_path / "t.npz")
    assert (again.ids == trace.ids).all() and again.experts == trace.experts and again.name == "t"
    assert all(len(step) == 6 for step in trace.layer(1))
    assert (drawn(SKEWED, 20, 2).ids == trace.ids).all() and (
        drawn(SKEWED, 20, 2, seed=1).ids != trace.ids
    ).any()


def test_the_recorder_notes_what_the_model_asks_for() -> None:
    """Hash layers ask for what their table says of each token, learned ones for as many different experts."""
    tokens = text(CHECKPOINT, 48)
    trace = record(CHECKPOINT, 48)
    assert trace.ids.shape[0] == 48 and trace.ids.min() >= 0 and trace.ids.max() < trace.experts
    each = trace.ids.shape[2]
    assert all(len(set(row)) == each for row in trace.ids.reshape(-1, each).tolist())
    tables: dict[str, Any] = {}
    for path in CHECKPOINT.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            tables |= {name: file.get_tensor(name) for name in file.keys() if name.endswith("tid2eid")}  # noqa: SIM118
    assert tables
    for name, table in tables.items():
        layer = int(name.split(".")[1])
        assert (np.sort(trace.ids[:, layer]) == np.sort(table[tokens])).all()
