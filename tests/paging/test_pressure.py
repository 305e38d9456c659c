"""Memory pressure: slots are given back at once, come back slowly, and no bit changes on the way."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from paging.paged_model import Model
from paging.test_exact import layers

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
    engine = model.open("16x", expert_threads=4)
    pager = engine.pager
    assert pager is not None
    session, whole = engine.session(), model.open("100%").session()
    times = iter(range(0, 10_000, 30))
    pager.clock = lambda: float(next(times))
    seen, memory = [], []
    for count in range(30, 90):
        pressed = 40 <= count < 46
        pager.sense = lambda pressed=pressed: Pressure.CRITICAL if pressed else Pressure.NORMAL  # type: ignore[misc]
        assert np.array_equal(session.sync(model.tokens[:count]), whole.sync(model.tokens[:count]))
        seen.append(layers(engine)[1].bank.slots)
        mx.clear_cache()
        memory.append(mx.get_active_memory())
    assert seen[9] == 16
    assert seen[15] == 1
    assert seen[-1] == 16
    assert all(after - before <= 1 for before, after in zip(seen, seen[1:], strict=False))
    record = layers(engine)[0].records.record_bytes
    assert memory[9] - memory[16] > 0.9 * 15 * 4 * record  # given back, not kept somewhere
