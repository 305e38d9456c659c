"""The table of Macs, and what macOS lets their GPU keep."""

from __future__ import annotations

import pytest

from dsv4_mlx.machine.macs import (
    MACS,
    default_gpu_limit,
    find_mac,
    highest_gpu_limit,
    left_to_page_cache,
    page_cache_room,
    wirable,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("gib", "macos", "limit"),
    [(24, 15, 16.0), (32, 14, 21.33), (36, 15, 27.0), (64, 15, 48.0), (128, 15, 96.0), (512, 15, 384.0)]
    + [(64, 26, 48.0), (128, 26, 107.52), (256, 26, 222.73)],
)
def test_limits_are_those_that_macs_reported(gib: int, macos: int, limit: float) -> None:
    assert default_gpu_limit(gib * GIB, macos) / GIB == pytest.approx(limit, abs=0.02)


def test_limits_rise_and_leave_room() -> None:
    for macos in (14, 15, 26):
        limits = [default_gpu_limit(gib * GIB, macos) for gib in range(8, 600)]
        assert limits == sorted(limits)
    for gib in (24, 36, 64, 128, 256, 512):
        for macos in (15, 26):
            limit = default_gpu_limit(gib * GIB, macos)
            assert default_gpu_limit(gib * GIB, 15) <= limit < gib * GIB
            assert 0 <= page_cache_room(gib * GIB, limit) <= gib * GIB - limit
            assert wirable(gib * GIB, limit) <= max(highest_gpu_limit(gib * GIB), gib * GIB * 65 // 100)


def test_a_mac_is_found_by_what_it_says_of_itself() -> None:
    for mac in MACS:
        assert find_mac(f"Apple {mac.chip}", mac.memory) == mac
        assert mac.disk[0] <= mac.disk[1] < mac.bandwidth and mac.memory == mac.gib * GIB
    assert find_mac("Apple M5 Pro", 256 * GIB) is None and find_mac("Intel", 64 * GIB) is None


@pytest.mark.parametrize(
    ("gib", "working_set", "own", "wired", "experts_stop_at"),
    [  # GiB
        (24, 16, 16, 15.6, 8),
        (36, 27, 27, 23.4, 20),
        (48, 36, 36, 36, 32),
        (64, 48, 48, 48, 48),
        (64, 56, 48, 54.4, 48),  # raised: the page cache keeps what macOS leaves it
        (128, 107.5, 107.5, 107.5, 107.5),
        (128, 120, 96, 108.8, 96),
        (192, 184, 144, 163.2, 144),
        (256, 222.7, 222.7, 217.6, 217.6),
    ],
)
def test_what_paging_leaves_to_the_page_cache(
    gib: int, working_set: float, own: float, wired: float, experts_stop_at: float
) -> None:
    sizes = [int(size * GIB) for size in (working_set, own)]
    assert wirable(gib * GIB, sizes[0]) / GIB == pytest.approx(wired, abs=0.01)
    left = left_to_page_cache(gib * GIB, *sizes)
    assert (wirable(gib * GIB, sizes[0]) - left) / GIB == pytest.approx(experts_stop_at, abs=0.01)
