"""Macs by what is published of them, and what macOS lets their GPU keep in memory."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
_FOR_THE_SYSTEM = 8 * GIB  # memory that macOS and other programs need beside the model
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
    """The most bytes a GPU may keep while the Mac stays usable: a sixteenth, 8 GiB at least, is left."""
    return memory - max(_FOR_THE_SYSTEM, memory // 16)


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
