"""A bug's traceback, kept in a file for the report."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from dsv4_mlx import __version__
from dsv4_mlx.cli.options import cache_folder


def write_crash_log(detail: str) -> str:
    """Write a traceback to a new file and return its path."""
    try:
        return _write(cache_folder(), detail)
    except (OSError, RuntimeError):  # read-only, full, or no home
        return _write(Path(tempfile.gettempdir()), detail)


def _write(folder: Path, detail: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix="crash-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"dsv4-mlx {__version__}, Python {sys.version}\n{detail}")
    return log.name
