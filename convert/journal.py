"""What an unfinished conversion has done so far: one JSON line for what it is, one for each finished file.

A line is appended and forced to disk after its file has its final name. A file without a line is made again,
so a kill at any moment costs at most one file's work. A torn last line counts as absent.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.manifest import FORMAT
from dsv4_mlx.convert.folder import JOURNAL, sync_folder
from dsv4_mlx.errors import InputError
from dsv4_mlx.machine.disks import to_disk


@dataclass(frozen=True)
class Task:
    """What a conversion is: two tasks that are equal write the same bytes."""

    identity: str  # of the source
    recipe: str
    format: int = FORMAT

    def differs(self, other: Task) -> str | None:
        """In what `other` is another task, for a message; None if it is the same."""
        if other.format != self.format:
            return f"format {other.format}, this program writes format {self.format}"
        if other.recipe != self.recipe:
            return f"recipe {other.recipe}, not {self.recipe}"
        if other.identity != self.identity:
            return f"another source (identity {other.identity[:12]}, not {self.identity[:12]})"
        return None


class Journal:
    """The journal of a target that this process holds locked."""

    def __init__(self, target: Path) -> None:
        self.path = target / JOURNAL

    def start(self, task: Task) -> None:
        """Begin an empty journal. Raises OSError."""
        line = {"format": task.format, "recipe": task.recipe, "identity": task.identity}
        self._append(line, os.O_TRUNC)
        sync_folder(self.path.parent)

    def add(self, file: str, digests: dict[str, str]) -> None:
        """Record a file that has its final name. Raises OSError."""
        self._append({"file": file, "digests": digests})

    def _append(self, line: dict[str, Any], flags: int = 0) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o644)
        try:
            end = len(self._whole_lines())
            os.ftruncate(descriptor, end)  # drop a torn line
            text = json.dumps(line).encode() + b"\n"
            written = 0
            while written < len(text):
                written += os.pwrite(descriptor, text[written:], end + written)
            to_disk(descriptor)
        finally:
            os.close(descriptor)

    def _whole_lines(self) -> bytes:
        if not self.path.exists():
            return b""
        text = self.path.read_bytes()
        return text[: text.rfind(b"\n") + 1]

    def task(self) -> Task | None:
        """The conversion this journal belongs to; None if it was killed before it said so."""
        lines = self._lines()
        return None if not lines else Task(lines[0]["identity"], lines[0]["recipe"], lines[0]["format"])

    def finished(self) -> dict[str, dict[str, str]]:
        """file -> digest key -> SHA-256, of the files that were finished."""
        return {line["file"]: line["digests"] for line in self._lines()[1:]}

    def _lines(self) -> list[Any]:
        try:
            lines = [json.loads(line) for line in self._whole_lines().splitlines()]
            if lines:
                Task(str(lines[0]["identity"]), str(lines[0]["recipe"]), int(lines[0]["format"]))
            for line in lines[1:]:
                if not isinstance(line["file"], str) or not isinstance(line["digests"], dict):
                    raise ValueError
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                "the record of the unfinished conversion is damaged",
                where=self.path,
                next="delete the target folder and convert again",
            ) from None
        return lines
