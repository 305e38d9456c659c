"""The lines typed before, kept across runs: one JSON string a line, after a line with the version."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.terminal.store import keep_aside, private_folder, write_private

VERSION = 1
KEPT = 5000  # lines kept when the file is rewritten
REWRITE = 2 * KEPT


class LineHistory(History):
    """A file, private, appended to. Its problems are in `problems`, to be said once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.problems: list[str] = []
        self._writable = True
        self._lines = self._read()

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._lines)

    def store_string(self, string: str) -> None:
        if not self._writable:
            return
        try:
            private_folder(self.path.parent)
            new = not self.path.exists()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
                file.write((_header() if new else "") + json.dumps(string) + "\n")
        except (OSError, Dsv4Error) as error:
            self._writable = False
            why = error.strerror if isinstance(error, OSError) else str(error)
            self.problems.append(f"the input history can't be written: {why}\n  in   {self.path}")

    def _read(self) -> list[str]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._writable = False
            self.problems.append(f"the input history can't be read: {error.strerror}\n  in   {self.path}")
            return []
        except UnicodeDecodeError as error:
            return self._damaged(f"byte {error.start} is not UTF-8")
        try:
            version = json.loads(lines[0])["version"] if lines else VERSION
            if version > VERSION:
                self._writable = False
                self.problems.append(
                    f"the input history has version {version}, this program reads up to {VERSION}: "
                    f"it is left alone\n  in   {self.path}"
                )
                return []
            if lines and not lines[-1].endswith('"') and len(lines) > 1:
                del lines[-1]  # a crash cut it short; the next line typed must not continue it
                self._rewrite([json.loads(line) for line in lines[1:]])
            found = [json.loads(line) for line in lines[1:]]
            if not all(isinstance(line, str) for line in found):
                raise ValueError("a line is not a string")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return self._damaged(str(error))
        if len(found) > REWRITE:
            found = found[-KEPT:]
            self._rewrite(found)
        return found

    def _damaged(self, why: str) -> list[str]:
        aside = keep_aside(self.path)
        self.problems.append(f"the input history is damaged ({why}); it is kept as\n  in   {aside}")
        return []

    def _rewrite(self, lines: list[str]) -> None:
        data = _header() + "".join(json.dumps(line) + "\n" for line in lines)
        try:
            write_private(self.path, data.encode("ascii"))
        except OSError:
            self._writable = False  # store_string has said nothing yet, but reading worked


def _header() -> str:
    return json.dumps({"version": VERSION}) + "\n"
