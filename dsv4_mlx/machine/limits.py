"""What this machine is, as far as the runtime needs to know."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from enum import IntEnum

import mlx.core as mx

from dsv4_mlx.machine.disks import ask
from dsv4_mlx.machine.macs import default_gpu_limit, left_to_page_cache, wirable

OPEN_MAX = 10_240  # macOS takes no higher soft limit than this where the hard one is infinite
HEADROOM = 64  # Python, libraries, the loop, notes and pipes


class Pressure(IntEnum):
    """As macOS counts it (kern.memorystatus_vm_pressure_level)."""

    NORMAL = 1
    WARNING = 2
    CRITICAL = 4


def memory_limit() -> int:
    """Bytes the model may use: what a Mac can keep wired of the GPU's recommended working set, memory
    available elsewhere."""
    if mx.metal.is_available():
        return wirable(*_memory_and_working_set())
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
    """Bytes of `memory_limit` that `--expert-memory auto` leaves to the system's page cache, from which
    misses are read again."""
    if mx.metal.is_available():
        memory, working_set = _memory_and_working_set()
        major = platform.mac_ver()[0].partition(".")[0]
        raised = _sysctl(b"iogpu.wired_limit_mb")
        own = default_gpu_limit(memory, int(major or 15)) if raised else working_set
        return left_to_page_cache(memory, working_set, own)
    return installed_memory() // 8


def others_share() -> int:
    """Bytes of `memory_limit` that other programs hold now. 0 where the limit is without them already, and
    where macOS doesn't say."""
    if sys.platform != "darwin" or not mx.metal.is_available():
        return 0
    return max(
        0, memory_limit() - (_memory_and_working_set()[0] - memory_used(ask(["/usr/bin/vm_stat"]) or ""))
    )


def memory_used(vm_stat: str) -> int:
    """Bytes in use as Activity Monitor counts them, of what `vm_stat` prints: wired, compressed, and what
    programs hold without what is purgeable. Not files in the page cache. 0 where it says nothing."""
    page = re.search(r"page size of (\d+) bytes", vm_stat)
    counts = {name: int(count) for name, count in re.findall(r'^"?([^":]+)"?:\s+(\d+)\.?$', vm_stat, re.M)}
    names = "Pages wired down", "Anonymous pages", "Pages occupied by compressor"
    used = sum(counts.get(name, 0) for name in names) - counts.get("Pages purgeable", 0)
    return max(0, used) * int(page[1]) if page else 0


def _memory_and_working_set() -> tuple[int, int]:
    device = mx.device_info()
    return int(device["memory_size"]), int(device["max_recommended_working_set_size"])


def memory_pressure() -> Pressure:
    """What macOS says about memory now; NORMAL elsewhere and where it says nothing."""
    level = _sysctl(b"kern.memorystatus_vm_pressure_level")
    return Pressure(level) if level in set(Pressure) else Pressure.NORMAL


def _sysctl(name: bytes) -> int | None:
    """A whole number that macOS knows by this name; None elsewhere."""
    if sys.platform != "darwin":
        return None
    value, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    wrong = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return None if wrong else value.value


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
