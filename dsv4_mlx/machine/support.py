"""Which machines this runs on. Asked before MLX is imported: where it can't run it can't be installed."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from dsv4_mlx.errors import MachineError

OLDEST_MACOS = 14


def check_supported() -> None:
    """Refuse by name what can't work. Raises MachineError.

    Intel Macs, an Intel Python under Rosetta, macOS before 14, and systems other than macOS and Linux.
    """
    system, processor = platform.system(), platform.machine()
    if system == "Linux":
        return
    if system != "Darwin":
        raise MachineError(
            f"this is {system or 'an unknown system'}; dsv4-mlx runs on macOS (Apple silicon) and, "
            "without a GPU, on Linux",
            next="use a Mac with Apple silicon",
        )
    if processor != "arm64":
        if translated():
            raise MachineError(
                "this Python is for Intel processors and runs under Rosetta; MLX needs one for Apple silicon",
                next="install an arm64 Python, for example: uv python install 3.12",
            )
        raise MachineError(
            "this is an Intel Mac; MLX, which dsv4-mlx runs on, needs Apple silicon (M1 or later)",
            next="use a Mac with Apple silicon",
        )
    version = platform.mac_ver()[0]
    if version and int(version.split(".")[0]) < OLDEST_MACOS:
        raise MachineError(
            f"this is macOS {version}; MLX needs macOS {OLDEST_MACOS} or later", next="update macOS"
        )


def translated() -> bool:
    """Whether macOS runs this process under Rosetta. An Intel Mac doesn't know the question: no."""
    try:
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"],
            capture_output=True,
            text=True,
            check=False,
            close_fds=False,
        )
    except OSError:
        return False
    return asked.stdout.strip() == "1"


def mac_caches() -> Path:
    """Where this program keeps what it can make again, on a Mac. Raises RuntimeError without a home."""
    return Path.home() / "Library" / "Caches" / "dsv4-mlx"
