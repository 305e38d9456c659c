"""Macs by what is published of them, and what macOS lets their GPU keep in memory."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
_FOR_THE_SYSTEM = 16 * GIB  # memory that macOS, other programs and the page cache need beside the model
_SMALL = 48 * GIB  # Macs below were reported to freeze unless a third of their memory stays unwired
_SYSTEM = 6_000_000_000  # what they keep of the memory that the GPU may not use: an estimate
# macOS 26: shares of the memory that Macs reported, from this much memory on. None is known of smaller ones.
_MACOS_26 = ((256 * GIB, 0.87), (128 * GIB, 0.84))


def default_gpu_limit(memory: int, macos: int = 15) -> int:
    """Bytes that macOS lets the GPU keep of so many unless told otherwise. Reported by others, not
    documented by Apple: two thirds below 36 GiB, three quarters from there on; more with macOS 26 from 128
    GiB on."""
    if macos >= 26:
        for least, share in _MACOS_26:
            if memory >= least:
                return int(memory * share)
    return memory * 2 // 3 if memory < 36 * GIB else memory * 3 // 4


def highest_gpu_limit(memory: int) -> int:
    """The most bytes that a user should let the GPU keep: 15 % and 16 GiB at least are left. Macs restarted
    with less. Below what macOS allows by itself where the memory is small."""
    return memory - max(_FOR_THE_SYSTEM, -(-memory * 15 // 100))


def wirable(memory: int, working_set: int) -> int:
    """Bytes of a model that can be kept wired: the GPU's working set, 85% of the memory, of a small machine's
    65%."""
    return min(working_set, memory * (65 if memory < _SMALL else 85) // 100)


def left_to_page_cache(memory: int, working_set: int, own: int) -> int:
    """Bytes of `wirable` that a model whose experts don't all fit leaves unless told otherwise: it stops at
    macOS's `own` limit where a user raised it to `working_set`, and 16 GiB before the end of the memory.
    Others measured that more experts in memory are slower once the page cache is squeezed."""
    return max(0, wirable(memory, working_set) - min(own, max(0, memory - _FOR_THE_SYSTEM)))


def page_cache_room(memory: int, gpu_limit: int) -> int:
    """Bytes of records that the system's page cache can hold beside a model that takes all the GPU may
    keep."""
    return max(0, memory - gpu_limit - _SYSTEM)


@dataclass(frozen=True)
class Mac:
    """A Mac by its chip and `gib` of memory. Bytes per second: `bandwidth` as Apple publishes it, `disk` at
    least and at most."""

    chip: str
    gib: int
    bandwidth: float
    disk: tuple[float, float]

    @property
    def name(self) -> str:
        return f"{self.chip}, {self.gib} GB"

    @property
    def memory(self) -> int:
        return self.gib * GIB


# Disks: 4.2 GB/s cold was reported for an M4, 4 to 7 for an M5; for the Ultras 5 to 7 is taken.
MACS = (
    Mac("M5", 24, 153e9, (4.2e9, 7e9)),
    Mac("M4 Max", 36, 410e9, (4.2e9, 7e9)),
    Mac("M5 Pro", 48, 307e9, (4.2e9, 7e9)),
    Mac("M5 Pro", 64, 307e9, (4.2e9, 7e9)),
    Mac("M3 Ultra", 96, 819e9, (5e9, 7e9)),
    Mac("M5 Max", 128, 614e9, (4.2e9, 7e9)),
    Mac("M2 Ultra", 192, 800e9, (5e9, 7e9)),
    Mac("M3 Ultra", 256, 819e9, (5e9, 7e9)),
)


def find_mac(chip: str, memory: int) -> Mac | None:
    """The Mac that calls its chip so ("Apple M5 Pro") and has so many bytes; None if it is not in the
    table."""
    found = (mac for mac in MACS if chip.removeprefix("Apple ") == mac.chip and memory == mac.memory)
    return next(found, None)
