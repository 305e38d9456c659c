"""What long work shows: a bar on a terminal, a line now and then elsewhere. All of it on stderr.

A bug's traceback, kept in a file for the report.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dsv4_mlx import __version__
from dsv4_mlx.machine import units
from dsv4_mlx.machine.support import cache_folder
from dsv4_mlx.machine.units import duration, size

_EVERY = 5.0  # seconds between lines when stderr is no terminal
_WINDOW, _TICK = 30.0, 0.5  # seconds that a speed is taken over, and between two looks


class Progress(Protocol):
    def __call__(self, done: int, total: int, stage: str = "") -> None: ...


def tell(notice: str) -> None:
    """A line on stderr about how the work is done; nothing for an empty one."""
    if notice:
        print(notice, file=sys.stderr, flush=True)


class Speed:
    """Units per second over the last half minute: what was there before the start doesn't count for long."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: deque[tuple[float, int]] = deque()

    def reached(self, done: int) -> float | None:
        """The speed so far; None at the beginning."""
        now = self._now()
        if not self._seen or now - self._seen[-1][0] >= _TICK:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()
        seconds = now - self._seen[0][0]
        return (done - self._seen[0][1]) / seconds if seconds > 0 else None


@contextmanager
def progress(
    title: str, unit: str = "bytes", *, quiet: bool = False, plain: bool = False
) -> Iterator[Progress]:
    """A callback (done, total, stage) that shows how far the work is. `unit` is "bytes" or "tokens".

    `plain`: lines of text, on a terminal too.
    """
    if quiet:
        yield lambda done, total, stage="": None
    elif sys.stderr.isatty() and not plain:
        yield from _bar(title, unit)
    else:
        yield _lines(title, unit)


def _bar(title: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task, speed = bars.add_task(title, amount=""), Speed()

        def show(done: int, total: int, stage: str = "") -> None:
            amount = _amount(done, total, unit, speed.reached(done))
            bars.update(task, completed=done, total=total, description=stage or title, amount=amount)

        yield show


def _lines(title: str, unit: str) -> Progress:
    said, speed = time.monotonic(), Speed(time.monotonic)

    def show(done: int, total: int, stage: str = "") -> None:
        nonlocal said
        rate, now = speed.reached(done), time.monotonic()
        if now - said < _EVERY:
            return
        said = now
        amount = _amount(done, total, unit, rate)
        print(f"{title}: {'; '.join(filter(None, (amount, stage)))}", file=sys.stderr, flush=True)

    return show


def _amount(done: int, total: int, unit: str, rate: float | None) -> str:
    if total == 0:
        return ""
    text = f"{size(done)} of {size(total)}" if unit == "bytes" else f"{done} of {total} {unit}"
    if rate is None or rate <= 0 or done > total:
        return text
    speed = units.speed(rate) if unit == "bytes" else f"{units.rate(rate)}/s"
    left = f", {duration((total - done) / rate)} left" if done < total else ""
    return f"{text}, {speed}{left}"


def table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on stdout: drawn on a terminal, tab-separated elsewhere. The first column is left-aligned."""
    if not sys.stdout.isatty():
        print("\t".join(header))
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        drawn.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


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
