"""Linux: the table of mounts, and where a block device hangs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dsv4_mlx.machine.disks import Volume

MOUNTS = Path("/proc/self/mountinfo")
BLOCK = Path("/sys/dev/block")


def volume_of(path: Path) -> Volume | None:
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = mount_of(table, path)
    if found is None:
        return None
    number, place, kind = found
    usb = "/usb" in os.path.realpath(BLOCK / number)
    return Volume(place, kind, external=usb, bus="USB" if usb else "")


def mount_of(table: str, path: Path) -> tuple[str, str, str] | None:
    """(device number, mount point, file system) of the mount that holds `path`: the last of the longest.

    A line is: id, parent, major:minor, root, mount point, options, ..., "-", file system, source, options.
    """
    best: tuple[str, str, str] | None = None
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        columns, kinds = before.split(), after.split()
        if len(columns) < 5 or not kinds:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), columns[4])
        holds = Path(place) == path or Path(place) in path.parents
        if holds and (best is None or len(place) >= len(best[1])):
            best = columns[2], place, {"vfat": "fat32", "ntfs3": "ntfs"}.get(kinds[0], kinds[0])
    return best
