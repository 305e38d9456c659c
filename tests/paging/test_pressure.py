"""Memory pressure: slots are given back at once, come back slowly, and no bit changes on the way."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paging.paged_model import Model
from paging.test_exact import layers

from dsv4_mlx.engine import buffer_cache, engine
from dsv4_mlx.engine.memory import workspace
from dsv4_mlx.machine.limits import Pressure
from dsv4_mlx.paging.pressure import CALM, GROW_EVERY, SHRINK_EVERY, PressureController


@given(st.integers(1, 300), st.lists(st.tuples(st.sampled_from(Pressure), st.floats(0, 100)), max_size=60))
def test_slots_stay_between_one_and_what_was_announced(
    most: int, samples: list[tuple[Pressure, float]]
) -> None:
    controller, now = PressureController(most), 0.0
    for pressure, passed in samples:
        before, now = controller.slots, now + passed
        after = controller.decide(pressure, now)
        assert 1 <= after <= most
        if pressure == Pressure.NORMAL:
            assert before <= after <= before + max(1, most // 16)
        else:
            assert after <= before


def test_it_shrinks_at_once_and_grows_after_a_calm() -> None:
    controller = PressureController(64)
    assert controller.decide(Pressure.CRITICAL, 10.0) == 32
    assert controller.decide(Pressure.CRITICAL, 10.1) == 32  # what was given back has yet to show
    assert controller.decide(Pressure.WARNING, 10.0 + SHRINK_EVERY) == 24
    now = 10.0 + SHRINK_EVERY
    assert controller.decide(Pressure.NORMAL, now + CALM - 1) == 24
    assert controller.decide(Pressure.NORMAL, now + CALM) == 28
    assert controller.decide(Pressure.NORMAL, now + CALM + 1) == 28
    assert controller.decide(Pressure.NORMAL, now + CALM + GROW_EVERY) == 32
    for step in range(2, 20):
        controller.decide(Pressure.NORMAL, now + CALM + step * GROW_EVERY)
    assert controller.slots == 64
    controller.decide(Pressure.NORMAL, 10_000.0)
    assert controller.slots == 64


def test_pressure_in_the_middle_of_an_answer(model: Model) -> None:
    opened = model.open("16x", expert_threads=4)
    pager = opened.pager
    assert pager is not None
    session, whole = opened.session(), model.open("100%").session()
    times = iter(range(0, 10_000, 30))
    pager.clock = lambda: float(next(times))
    seen, memory = [], []
    for count in range(30, 90):
        pressed = 40 <= count < 46
        pager.sense = lambda pressed=pressed: Pressure.CRITICAL if pressed else Pressure.NORMAL  # type: ignore[misc]
        assert np.array_equal(session.sync(model.tokens[:count]), whole.sync(model.tokens[:count]))
        seen.append(layers(opened)[1].bank.slots)
        memory.append([layer.bank.nbytes for layer in layers(opened)])
    assert seen[9] == 16
    assert seen[15] == 1
    assert seen[-1] == 16
    assert all(after - before <= 1 for before, after in zip(seen, seen[1:], strict=False))
    record = layers(opened)[0].records.record_bytes
    assert sum(memory[9]) - sum(memory[16]) >= 15 * 4 * record  # test_slot_memory: given back, not kept


def test_an_engine_that_rests_gives_memory_back_and_takes_it_again(model: Model) -> None:
    opened = model.open("16x", expert_threads=2)
    pager, now = opened.pager, 0.0
    assert pager is not None
    seen = []
    pager.clock = lambda: now
    for step in range(32):
        now += SHRINK_EVERY
        pressure = {1: Pressure.WARNING, 2: Pressure.CRITICAL, 3: Pressure.CRITICAL}.get(
            step, Pressure.NORMAL
        )
        pager.sense = lambda pressure=pressure: pressure  # type: ignore[misc]
        opened.rest()
        assert {layer.bank.slots for layer in layers(opened)} == {pager.controller.slots}
        seen.append(pager.controller.slots)
    assert seen[:5] == [16, 12, 6, 3, 3]
    calm = 3 + int(CALM / SHRINK_EVERY)
    assert seen[calm - 1 : calm + 1] == [3, 4] and seen[-1] == 3 + (32 - calm + 1) // 2
    whole = model.open("100%").session()
    assert np.array_equal(opened.session().sync(model.tokens[:40]), whole.sync(model.tokens[:40]))


@pytest.mark.parametrize("pressure", list(Pressure))
def test_where_all_is_in_memory_freed_buffers_are_given_back(
    pressure: Pressure, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[None] = []
    opened = model.open("100%")
    monkeypatch.setattr(engine, "memory_pressure", lambda: pressure)
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(None))
    opened.rest()
    assert len(cleared) == (pressure != Pressure.NORMAL)


def test_mlx_keeps_freed_buffers_by_what_is_done(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing while loading, a quarter of the workspace for a prompt, a step's while decoding."""
    said: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", said.append)
    monkeypatch.setattr(buffer_cache, "_limits", {"now": -1, "prefill": 0})
    monkeypatch.setattr(buffer_cache, "DECODE", 128 << 20)
    session = model.open("16x").session()
    assert said == [0, 128 << 20]
    session.sync(model.tokens[:40])
    (prefill,) = said[2:]
    assert 128 << 20 < prefill < 129 << 20  # a small model
    session.sync(model.tokens[:45])
    session.advance(5)
    session.advance(6)
    session.fork().sync(model.tokens[:90])
    assert said[3:] == [128 << 20, prefill]


@pytest.mark.parametrize(("gigabytes", "mebibytes"), [(0, 256), (8, 366), (13, 515), (40, 1024), (160, 1024)])
def test_a_prompts_buffers_are_within_the_workspace(gigabytes: int, mebibytes: int) -> None:
    kept = buffer_cache.prefill_limit(gigabytes * 10**9)
    assert kept >> 20 == mebibytes and kept <= workspace(gigabytes * 10**9) // 4 or not gigabytes
