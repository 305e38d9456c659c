"""How many descriptors a server asks for, and what it makes of what it gets."""

from __future__ import annotations

import resource

import pytest

from dsv4_mlx.machine.limits import HEADROOM, allow, connections

INFINITE = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """A system whose limits are in "now"; it takes no soft limit over "most"."""
    system = {"now": (256, INFINITE), "most": (10_240, 0)}

    def put(kind: int, wanted: tuple[int, int]) -> None:
        assert kind == resource.RLIMIT_NOFILE
        if wanted[0] > system["most"][0]:
            raise ValueError("current limit exceeds maximum limit")
        system["now"] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda kind: system["now"])
    monkeypatch.setattr(resource, "setrlimit", put)
    return system


@pytest.mark.parametrize(
    ("now", "wanted", "allowed", "after"),
    [
        ((256, INFINITE), 700, 700, (700, INFINITE)),  # a Mac as it comes
        ((256, INFINITE), 20_000, 10_240, (10_240, INFINITE)),
        ((256, 4096), 700, 700, (700, 4096)),
        ((256, 512), 700, 512, (512, 512)),
        ((256, 256), 700, 256, (256, 256)),
        ((1024, 4096), 700, 700, (1024, 4096)),  # never lowered
        ((12_000, INFINITE), 20_000, 12_000, (12_000, INFINITE)),
        ((INFINITE, INFINITE), 700, 700, (INFINITE, INFINITE)),
    ],
)
def test_limits_are_raised_as_far_as_they_go(
    limits: dict[str, tuple[int, int]],
    now: tuple[int, int],
    wanted: int,
    allowed: int,
    after: tuple[int, int],
) -> None:
    limits["now"] = now
    assert allow(wanted) == allowed
    assert limits["now"] == after


def test_a_system_that_refuses_keeps_its_limit(limits: dict[str, tuple[int, int]]) -> None:
    limits["most"] = (300, 0)
    assert allow(700) == 256 and limits["now"] == (256, INFINITE)


def test_connections_leave_room_for_the_model(limits: dict[str, tuple[int, int]]) -> None:
    assert connections(512, 46, 16) == 512
    limits["now"] = (256, 256)
    assert connections(512, 46, 16) == 256 - 2 * 46 - 16 - HEADROOM
    limits["now"] = (64, 64)
    assert connections(512, 46, 16) == 1
