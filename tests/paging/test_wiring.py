"""What is wired on Macs of all sizes, and how often, under a recorder of MLX's memory calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from engine.pretend_mac import PretendMac
from paging.paged_model import Model

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import Dsv4Warning, UsageError
from dsv4_mlx.machine import mlx_switches, wire_guard
from dsv4_mlx.machine.limits import Pressure

GIB = 1 << 30


@pytest.fixture(autouse=True)
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[wire_guard.Guard]:
    """A process that has not wired yet, in a home of its own."""
    found = wire_guard.Guard(tmp_path / "wired")
    monkeypatch.setattr(wire_guard, "this_process", lambda: found)
    yield found
    found.clear()


@pytest.mark.parametrize(
    ("memory", "working_set", "resident", "wired"),
    [  # GiB; a working set close to the memory is one that the user has raised
        (24, 16, 9, 9),
        (24, 22, 20, 15.6),  # 65%
        (36, 27, 30, 23.4),
        (36, 20, 30, 20),
        (64, 48, 47, 47),
        (64, 60, 59, 54.4),  # 85%
        (128, 107.5, 102, 102),
        (128, 107.5, 110, 107.5),
        (128, 122, 120, 108.8),
        (192, 144, 160, 144),
        (192, 184, 170, 163.2),
        (512, 384, 170, 170),
        (512, 500, 480, 435.2),
    ],
)
def test_bounds(
    memory: float,
    working_set: float,
    resident: float,
    wired: float,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = [int(x * GIB) for x in (memory, working_set, resident)]
    mac = PretendMac(of[0], of[1], of[2]).install(monkeypatch)
    model.open("100%")
    assert mac.wired == [pytest.approx(wired * GIB, abs=1)]
    assert mac.wired[0] <= min(of[1], of[2])
    assert of[0] - mac.wired[0] >= 0.15 * of[0]
    assert of[0] >= 48 * GIB or mac.wired[0] <= 0.65 * of[0]


def test_once_for_a_layout_of_banks_and_never_for_an_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = PretendMac(128 * GIB, 96 * GIB).install(monkeypatch)
    engine = model.open("16x", expert_threads=2)
    assert mac.wired == [mx.get_active_memory()]
    pager = engine.pager
    assert pager is not None
    now = 0.0
    pager.clock, pager.sense = lambda: now, lambda: Pressure.NORMAL

    def answer() -> int:
        """Two answers of some tokens in new sessions; how often memory was wired since the start."""
        nonlocal now
        for _ in range(2):
            session = engine.session()
            for count in range(20, 26):
                session.sync(model.tokens[:count])
        now += 100.0
        return len(mac.wired)

    slots = {}
    assert answer() == answer() == 1
    pager.sense = lambda: Pressure.CRITICAL
    assert answer() == 2
    slots["shrunk"] = pager.controller.slots
    pager.sense = lambda: Pressure.NORMAL
    assert answer() == 3
    slots["grown"] = pager.controller.slots
    assert slots == {"shrunk": 8, "grown": 9}
    assert mac.wired[1] < mac.wired[2] < mac.wired[0]


def test_all_in_memory_is_wired_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    mac = PretendMac(512 * GIB, 384 * GIB).install(monkeypatch)
    engine = model.open("100%")
    for _ in range(2):
        engine.session().sync(model.tokens[:30])
    assert len(mac.wired) == 1


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_off_and_elsewhere_nothing_is_wired(
    mode: str, model: Model, monkeypatch: pytest.MonkeyPatch, guard: wire_guard.Guard
) -> None:
    mac = PretendMac(128 * GIB, 96 * GIB).install(monkeypatch)
    if mode == "auto":
        monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    model.open("16x", wire=mode)
    assert mac.wired == []
    assert guard.left() == [] and guard.last() is None
    with pytest.raises(UsageError, match="wire is 'on'"):
        model.open("16x", wire="on")


def test_a_call_that_raises_is_said_and_the_model_opens(
    model: Model, monkeypatch: pytest.MonkeyPatch, guard: wire_guard.Guard
) -> None:
    mac = PretendMac(128 * GIB, 96 * GIB).install(monkeypatch)

    def refuse(limit: int) -> int:
        mac.wired.append(limit)
        raise ValueError("no wired memory today")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    with pytest.warns(Dsv4Warning, match="not wired.*no wired memory today"):
        engine = model.open("16x")
    assert engine.pager is not None
    engine.pager.clock, engine.pager.sense = lambda: 100.0, lambda: Pressure.CRITICAL
    engine.session().sync(model.tokens[:20])
    assert len(mac.wired) == 1  # not tried again
    assert guard.left() == []


def test_opening_warns_where_mlx_came_first(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    PretendMac(128 * GIB, 96 * GIB).install(monkeypatch)
    monkeypatch.setattr(mlx_switches, "LATE", True)
    with pytest.warns(Dsv4Warning, match="import dsv4_mlx first"):
        Engine.open(model.folder, EngineOptions(context=64, wire="off"))
