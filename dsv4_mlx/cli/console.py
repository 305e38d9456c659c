"""What long work shows: a bar on a terminal, a line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Progress = Callable[[int, int], None]
_EVERY = 5.0  # seconds between lines when stderr is no terminal


def tell(notice: str) -> None:
    """A line on stderr about how the work is done; nothing for an empty one."""
    if notice:
        print(notice, file=sys.stderr, flush=True)


@contextmanager
def progress(
    title: str, unit: str = "bytes", *, quiet: bool = False, plain: bool = False
) -> Iterator[Progress]:
    """A callback (done, total) that shows how far the work is. `unit` is "bytes" or "tokens".

    `plain`: lines of text, on a terminal too.
    """
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty() and not plain:
        yield from _bar(title, unit)
    else:
        yield _lines(title, unit)


def _bar(title: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    counted = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn(title), BarColumn(), *counted, TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _lines(title: str, unit: str) -> Progress:
    started = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < _EVERY:
            return
        said = now
        rate = done / (now - started)
        amount = (
            f"{size(done)} of {size(total)}, {size(rate)}/s"
            if unit == "bytes"
            else f"{done} of {total} {unit}"
        )
        left = f", {duration((total - done) / rate)} left" if 0 < done < total else ""
        print(f"{title}: {amount}{left}", file=sys.stderr, flush=True)

    return show


def duration(seconds: float) -> str:
    """A time for people, to two digits or so."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes for people: decimal, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


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
