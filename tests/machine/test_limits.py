"""What the model may use of a Mac, under stand-ins for what macOS says."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from engine.pretend_mac import PretendMac

from dsv4_mlx.machine import limits
from dsv4_mlx.machine.limits import memory_limit, memory_used, others_share, page_cache_share

GIB = 1 << 30
# As macOS prints it; 16 KiB pages. In use: 6 GiB wired, 10 of programs less 1 purgeable, 1 compressed.
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10324.
Pages active:                            482314.
Pages inactive:                          471821.
Pages speculative:                         9342.
Pages throttled:                              0.
Pages wired down:                        393216.
Pages purgeable:                          65536.
"Translation faults":                 987654321.
Pages copy-on-write:                   12345678.
File-backed pages:                       312345.
Anonymous pages:                         655360.
Pages stored in compressor:              131072.
Pages occupied by compressor:             65536.
Swapouts:                                     0.
"""


def test_memory_in_use_is_what_programs_and_the_system_hold() -> None:
    assert memory_used(VM_STAT) == 16 * GIB
    assert memory_used("") == memory_used("vm_stat: no such thing\n") == 0


@pytest.mark.parametrize(
    ("memory", "working_set", "taken"), [(24, 16, 7.6), (32, 21, 4.8), (64, 48, 0), (192, 184, 0)]
)
def test_what_other_programs_hold_is_taken_off(
    memory: int, working_set: int, taken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendMac(memory * GIB, working_set * GIB).install(monkeypatch)
    asked = []

    def ask(command: Sequence[str]) -> str:
        asked.append(list(command))
        return VM_STAT

    monkeypatch.setattr(limits, "ask", ask)
    assert others_share() == 0 and not asked  # Linux
    monkeypatch.setattr(sys, "platform", "darwin")
    assert others_share() / GIB == pytest.approx(taken)
    assert asked == [["/usr/bin/vm_stat"]]
    monkeypatch.setattr(limits, "ask", lambda command: None)
    assert others_share() == 0


@pytest.mark.parametrize(("setting", "left"), [(None, 0), (0, 0), (122_880, 12.8)])
def test_a_limit_that_was_raised_is_not_filled(
    setting: int | None, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 GB with 120 GiB allowed: 108.8 can be wired, 96 is macOS's own."""
    PretendMac(128 * GIB, (120 if setting else 96) * GIB).install(monkeypatch)
    monkeypatch.setattr(limits, "_sysctl", lambda name: setting)
    assert page_cache_share() / GIB == pytest.approx(left, abs=0.01)
    assert memory_limit() / GIB == pytest.approx(108.8 if setting else 96, abs=0.01)
