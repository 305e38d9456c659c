"""How fast files come from the Hub: measured while they come, or for some seconds before; kept for `plan`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from dsv4_mlx.hub.ranges import RangeDownload, blocks_of, spans_of, write
from dsv4_mlx.hub.remote import FetchStopped, Remote
from dsv4_mlx.machine.support import cache_folder

NAME = "network.json"
SECONDS = 3.0  # that a measurement takes
MOST = 256 << 20  # bytes that it fetches at most
LEAST = 64 << 20  # of a download that says how fast the network is


class _Nowhere:
    """In place of a PartFile."""

    def write(self, at: int, data: bytes) -> None:
        """Drops the bytes."""

    def mark(self, start: int, end: int) -> None:
        """Remembers nothing."""


def measure(remote: Remote, clock: Callable[[], float] = time.monotonic) -> float:
    """Bytes per second of the largest file, in the ranges of a download; what comes is dropped. Kept.

    Raises InputError, MachineError.
    """
    file = max(remote.files.values(), key=lambda file: file.bytes)
    retry = replace(remote.retry, tries=2)
    once = Remote(remote.repository, remote.commit, remote.files, remote.endpoint, retry)
    begin, come = clock(), 0

    def advance(count: int) -> None:
        nonlocal come
        come += count
        if clock() - begin >= SECONDS:
            once.stop.set()

    size = min(file.bytes, MOST)
    with suppress(FetchStopped):
        RangeDownload(once, file, advance).fetch(_Nowhere(), spans_of(size, bytes(blocks_of(size))))
    rate = come / max(clock() - begin, 1e-3)
    keep(rate)
    return rate


def keep(rate: float) -> None:
    """For `kept`, in a later process. Raises nothing: it is measured again."""
    with suppress(OSError):
        write(cache_folder() / NAME, json.dumps({"bytes per second": rate}).encode())


def kept() -> float | None:
    """Bytes per second of the last download or measurement on this machine, None if there was none."""
    try:
        rate = json.loads((cache_folder() / NAME).read_text(encoding="utf-8"))["bytes per second"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(rate) if isinstance(rate, int | float) and 1 <= rate < 1e12 else None
