"""Which disk a folder lies on, as its system says it."""

from __future__ import annotations

import sys
from pathlib import Path

from dsv4_mlx.machine import disks_linux as linux
from dsv4_mlx.machine import disks_macos as macos
from dsv4_mlx.machine.disks import Volume
from dsv4_mlx.machine.disks_ask import Ask, ask


def volume_of(path: Path, ask: Ask = ask, platform: str = sys.platform) -> Volume | None:
    """The volume of `path`, or of the nearest folder above that is there; None if the system doesn't say."""
    while not path.exists() and path != path.parent:
        path = path.parent
    path = path.resolve()
    return macos.volume_of(path, ask) if platform == "darwin" else linux.volume_of(path)
