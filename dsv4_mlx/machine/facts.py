"""What the machine is, as far as it says so itself."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from dsv4_mlx.machine.limits import installed_memory

Sysctl = Callable[[str], str | None]


@dataclass(frozen=True)
class Machine:
    """Bytes where a size is meant; None where this system doesn't say.

    `gpu_limit`: what the GPU may keep in memory at once. `wired_limit_mb`: the user's own setting of it, 0
    where there is none.
    """

    chip: str
    cores: int
    memory: int
    metal: bool
    gpu_limit: int | None
    wired_limit_mb: int | None
    system: str
    python: str
    mlx: str


def this_machine(
    sysctl: Sysctl | None = None, metal: bool | None = None, device: Mapping[str, Any] | None = None
) -> Machine:
    """Ask the system. The arguments stand in for a Mac in tests."""
    metal = mx.metal.is_available() if metal is None else metal
    sysctl = sysctl or _sysctl
    device = device if device is not None else (mx.device_info() if metal else {})
    wired = sysctl("iogpu.wired_limit_mb") if metal else None
    release = platform.mac_ver()[0]
    return Machine(
        chip=str(device.get("device_name") or _processor(sysctl)),
        cores=os.cpu_count() or 1,
        memory=int(device.get("memory_size") or installed_memory()),
        metal=metal,
        gpu_limit=int(device["max_recommended_working_set_size"]) if metal else None,
        wired_limit_mb=int(wired) if wired is not None and wired.isdigit() else None,
        system=f"macOS {release}" if release else f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        mlx=version("mlx"),
    )


def _processor(sysctl: Sysctl) -> str:
    if platform.system() == "Darwin":
        return sysctl("machdep.cpu.brand_string") or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def gpu_cores() -> int:
    """Of a Mac's GPU; 0 where the system doesn't say. Chips of one name differ in them."""
    said = _answer(["/usr/sbin/ioreg", "-rd1", "-c", "AGXAccelerator"]) or ""
    found = re.search(r'"gpu-core-count" = (\d+)', said)
    return int(found.group(1)) if found else 0


def _sysctl(name: str) -> str | None:
    return _answer(["/usr/sbin/sysctl", "-n", name])


def _answer(command: list[str]) -> str | None:
    try:
        asked = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            close_fds=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None
