"""Which machines this runs on, and the user's folders and settings there: the only reader of the environment.

Asked before MLX is imported: where that can't run it can't be installed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from dsv4_mlx.errors import InputError, MachineError

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


def cache_folder() -> Path:
    """Where this program keeps what it can make again."""
    if sys.platform == "darwin":
        return mac_caches()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "dsv4-mlx"


def verdicts_file() -> Path:
    """Where it is remembered which kernels can be trusted on this machine."""
    return cache_folder() / "kernels.json"


def data_folder() -> Path:
    """Where this program keeps what it can't make again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "dsv4-mlx"
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "dsv4-mlx"


def config_folder() -> Path:
    """Where other programs keep their settings, on every system that follows XDG and by custom on macOS."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base) if os.path.isabs(base) else Path.home() / ".config"


def is_completing() -> bool:
    """Whether a shell has started this to ask what may come next."""
    return "_DSV4_MLX_COMPLETE" in os.environ


def terminal_environment() -> dict[str, str]:
    """What the environment says about the terminal."""
    names = ("TERM", "NO_COLOR", "LC_ALL", "LC_CTYPE", "LANG")
    return {name: os.environ[name] for name in names if name in os.environ}


def at_home(given: Path | str) -> Path:
    """A path as typed, its `~` or `~NAME` made a home folder: a shell leaves it in quotes, a launcher
    everywhere. Raises InputError where there is no such home."""
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise InputError(
            f"{str(given)!r} begins with a home folder that is not known",
            next="write the whole path; ./~ is a file or folder of that name",
        ) from None
