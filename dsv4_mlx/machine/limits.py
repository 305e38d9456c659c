"""What this machine is, as far as the runtime needs to know."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from enum import IntEnum

import mlx.core as mx

OPEN_MAX = 10_240  # macOS takes no higher soft limit than this where the hard one is infinite
HEADROOM = 64  # Python, libraries, the loop, notes and pipes


class Pressure(IntEnum):
    """As macOS counts it (kern.memorystatus_vm_pressure_level)."""

    NORMAL = 1
    WARNING = 2
    CRITICAL = 4


def memory_limit() -> int:
    """Bytes the model may use: the GPU's recommended working set on a Mac, memory available elsewhere."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    if sys.platform == "linux":
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return installed_memory()


def installed_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def page_cache_share() -> int:
    """Bytes that `--expert-memory auto` leaves to the system's page cache, from which misses are read again.

    A Mac's working set leaves a quarter of the memory or more already.
    """
    if mx.metal.is_available():
        return 0
    return installed_memory() // 8


def memory_pressure() -> Pressure:
    """What macOS says about memory now; NORMAL elsewhere and where it says nothing."""
    if sys.platform != "darwin":
        return Pressure.NORMAL
    level, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    wrong = ctypes.CDLL(None).sysctlbyname(
        b"kern.memorystatus_vm_pressure_level", ctypes.byref(level), ctypes.byref(size), None, 0
    )
    known = not wrong and level.value in set(Pressure)
    return Pressure(level.value) if known else Pressure.NORMAL


def memory_in_use() -> int:
    """Bytes that MLX's arrays take now."""
    return mx.get_active_memory()


def description() -> str:
    """One line that says what computed the numbers beside it."""
    cores = os.cpu_count()
    if mx.metal.is_available():
        return f"{mx.device_info().get('device_name', 'Apple GPU')}, macOS {platform.mac_ver()[0]}, Metal"
    return f"{platform.system()} {platform.machine()}, {cores} cores, CPU only (not a Mac)"


def allow(wanted: int) -> int:
    """Raise the soft limit to `wanted` or as far as it goes, never lower it; how many may be open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    goal = min(wanted, OPEN_MAX if hard == resource.RLIM_INFINITY else hard)
    if goal <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
    except (ValueError, OSError):  # a system with a limit above these two
        return soft
    return goal


def connections(most: int, shards: int, spare: int) -> int:
    """At most `most`, and what the system allows beside a model of `shards` files and `spare` connections.

    A shard is opened by MLX, and once more where its experts are read from disk.
    """
    others = 2 * shards + spare + HEADROOM
    return max(1, min(most, allow(most + others) - others))
