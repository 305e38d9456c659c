"""Spotlight and Time Machine kept away from a folder: 160 GB that are worth neither an index nor a backup.

Time Machine: `tmutil addexclusion`, which marks the folder itself and needs no rights. Spotlight: the file
`.metadata_never_index`, a custom that Apple does not document; where it is not heeded, nothing is lost.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dsv4_mlx.machine.disks_ask import Ask, ask

MARK = ".metadata_never_index"


def can_exclude() -> bool:
    """Whether this system has a Time Machine."""
    return shutil.which("tmutil") is not None


def exclude(folder: Path, ask: Ask = ask) -> list[str]:
    """Do both; what could not be done, in sentences."""
    failed = []
    try:
        (folder / MARK).touch()
    except OSError as error:
        failed.append(f"Spotlight was not kept away from {folder}: {error.strerror or error}")
    if ask(["tmutil", "addexclusion", str(folder)]) is None:
        failed.append(f"Time Machine was not kept away from {folder}: `tmutil addexclusion` failed")
    return failed
