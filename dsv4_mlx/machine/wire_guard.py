"""Remembers from start to start whether wiring memory ended badly: a Mac that froze or restarted.

A process that wires leaves a mark, a file that it keeps locked, and takes it away after a minute or at its
own end, whatever comes first. The lock goes with the process, however that ends, and with the machine: a mark
that nobody holds was left by a process that ended within the minute, and not by itself.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from dsv4_mlx.machine.disks import to_disk
from dsv4_mlx.machine.support import mac_caches
from dsv4_mlx.machine.units import size

SECONDS = 60.0  # after which wiring has shown itself harmless
LAST = "last.json"


class Guard:
    """The marks in `folder`, and this process's own. Any thread."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self._folder, self._seconds = folder, seconds
        self._lock = threading.RLock()  # a signal's handler may clear while its own thread does
        self._mark: tuple[int, Path] | None = None  # descriptor, which holds the lock
        self._timer: threading.Timer | None = None
        self._examined = False
        self._refusal: str | None = None

    def refusal(self) -> str | None:
        """Why this process must not wire; None if it may. Marks that were found are taken away."""
        with self._lock:
            if not self._examined:
                self._refusal = self._examine()
                self._examined = True
            return self._refusal

    def left(self) -> list[Path]:
        """Marks of processes that are gone. Changes nothing."""
        return [path for path in sorted(self._folder.glob("*.mark")) if not _held(path)]

    def last(self) -> dict[str, Any] | None:
        """What was wired last without harm: `pid`, `bytes`, `time` (of the epoch); None if nothing was."""
        return _read(self._folder / LAST)

    def begin(self, size: int) -> None:
        """`size` bytes are about to be wired: the mark is on the disk afterwards. Raises OSError."""
        with self._lock:
            self.clear()
            with self._alone():
                descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=".mark")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._mark = descriptor, Path(name)
            note = {"pid": os.getpid(), "bytes": size, "time": time.time()}
            os.write(descriptor, json.dumps(note).encode())
            to_disk(descriptor)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                to_disk(folder)
            finally:
                os.close(folder)
            self._timer = threading.Timer(self._seconds, self.clear)
            self._timer.daemon = True
            self._timer.start()

    def clear(self) -> None:
        """Wiring did no harm, or this process ends by itself: its mark becomes the last note."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            mark, self._mark, self._timer = self._mark, None, None
            if mark is not None:
                descriptor, path = mark
                with suppress(OSError):
                    os.replace(path, self._folder / LAST)
                os.close(descriptor)

    def _examine(self) -> str | None:
        try:
            with self._alone():
                left = self.left()
                if not left:
                    return None
                note, when = _read(left[-1]), time.ctime(left[-1].stat().st_mtime)
                for path in left:
                    path.unlink()
        except OSError as error:
            return (
                f"no mark can be left in {self._folder} ({error.strerror})\n  next: make that folder writable"
            )
        what = "" if note is None else f"{size(note['bytes'])} by process {note['pid']}, "
        return (
            f"within a minute of the last wiring ({what}{when}) the program or the Mac was stopped\n"
            "  next: the next start wires again; --wire off never does"
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process makes or takes away marks meanwhile. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@cache
def this_process() -> Guard:
    """The guard of this process, whose own ends take its mark away. Raises RuntimeError without a home."""
    guard = Guard(mac_caches() / "wired")
    atexit.register(guard.clear)
    return guard


def clear() -> None:
    """This process ends by itself, but in a way that Python doesn't see."""
    if this_process.cache_info().currsize:
        this_process().clear()


def _held(path: Path) -> bool:
    """Whether the process that left the mark lives, or took it away just now."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not path.exists()
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    """A note; None where a crash has left less of it."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(note["pid"]), "bytes": int(note["bytes"]), "time": float(note["time"])}
    return None
