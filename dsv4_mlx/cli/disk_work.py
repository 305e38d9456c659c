"""Around work that fills a folder for hours: its disk named, backups kept away."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import Progress, progress, tell
from dsv4_mlx.machine.units import speed

MEASURED = 64 << 20  # bytes written and read to measure a disk

ExcludeOption = Annotated[
    bool | None,
    typer.Option(
        "--exclude-from-backup/--no-exclude-from-backup",
        help="Keep Time Machine and Spotlight away from the folder. Default: ask on a terminal.",
    ),
]


@contextmanager
def filling(title: str, folders: Sequence[Path], exclude: bool | None) -> Iterator[Progress]:
    """A progress display for work that fills `folders`; the first is the one that stays."""
    from dsv4_mlx.machine.disks import exclude as keep_away

    name_disk(folders[0])
    waiting = list(folders) if _consent(folders[0], exclude) else []
    with progress(title) as show:

        def advance(done: int, total: int, stage: str = "") -> None:
            for folder in [folder for folder in waiting if folder.is_dir()]:
                waiting.remove(folder)
                for sentence in keep_away(folder):
                    tell(sentence)
            show(done, total, stage)

        yield advance


def name_disk(folder: Path) -> None:
    """Say what the folder's disk is and how fast it reads, unless it is an internal one of the usual kind."""
    from dsv4_mlx.machine.disks import volume_of

    volume = volume_of(folder)
    if volume is None or volume.plain:
        return
    from dsv4_mlx.machine.measure import read_speed

    try:
        found = read_speed(existing(folder), MEASURED)
    except OSError:
        found = None
    reads = f"read at {speed(found)}" if found is not None else "read speed not measured"
    tell(f"{folder} is on {volume.describe()}: {reads}")
    tell(f"  {volume.warning()}" if volume.warning() else "")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _consent(folder: Path, given: bool | None) -> bool:
    from dsv4_mlx.machine.disks import can_exclude

    if not can_exclude():
        if given:
            tell("there is no tmutil here: nothing to exclude the folder from")
        return False
    if given is not None:
        return given
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        tell(f"Time Machine and Spotlight will go through {folder}; --exclude-from-backup keeps them away")
        return False
    return typer.confirm(f"Keep Time Machine and Spotlight away from {folder}?", default=True, err=True)
