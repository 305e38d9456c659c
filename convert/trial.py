"""A few seconds of a conversion on this machine, to tell how long all of it takes and what memory it needs.

The steps are those of the plan, spread over all of it and run as `run.py` runs them: reading, hashing and
writing overlap, past the page cache, with a sync now and then. Only their bytes go to a scratch file, which
has no name any more when the first of them comes. Which of reading, computing and writing holds the others
up is not asked: the overlap itself is timed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx

from dsv4_mlx.checkpoint.files import PAGE, OutFile
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import Source, open_source
from dsv4_mlx.convert.conversion_plan import ConversionPlan, make_plan
from dsv4_mlx.convert.pipeline import BLOCK, DEPTH, Streamer
from dsv4_mlx.convert.recipe import RECIPES, Format
from dsv4_mlx.convert.shards import LocalShards
from dsv4_mlx.convert.steps import ConversionStep, OutputSlice, steps_for
from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.machine.disks import to_disk

NATIVE = "native"  # the recipe that only copies
SCRATCH = 1 << 30  # bytes of the scratch file, at most
_SLOT = BLOCK + 4 * PAGE  # room for the bytes of one step and their places within pages


@dataclass(frozen=True)
class ConversionThroughput:
    """`opening`: seconds until the first byte. `copied`, `quantised`: bytes written per second; None for what
    the checkpoint has not. `memory`: the most this process held, by recipe."""

    opening: float
    copied: float
    quantised: float | None
    memory: dict[str, int]


@dataclass(frozen=True)
class Trial:
    """A rehearsal of one recipe: seconds until the first byte; bytes written per second, None where it has
    nothing to do; the most bytes of memory that the process held."""

    opening: float
    rate: float | None
    memory: int


@dataclass(frozen=True)
class BytesWritten:
    """Bytes that a plan writes, by what is done to them."""

    copied: int
    quantised: int

    def seconds(self, throughput: ConversionThroughput) -> float:
        """Of all of it, at that throughput."""
        slow = self.quantised / (throughput.quantised or throughput.copied)
        return throughput.opening + self.copied / throughput.copied + slow


def bytes_written(plan: ConversionPlan) -> BytesWritten:
    """Of all files."""
    quantised = 0
    for file in plan.files:
        affine = [target for target in file.targets if target.format == "affine4"]
        quantised += sum(part.bytes for target in affine for part in target.parts.values())
        if file.records is not None and file.records.format == "affine4":
            quantised += len(file.records.experts) * file.records.record_bytes
    return BytesWritten(plan.bytes - quantised, quantised)


def rehearse(folder: Path, place: Path, seconds: float, recipe: str) -> Trial:
    """Convert pieces of the checkpoint in `folder` for so long: those that `native` copies, or those that the
    recipe quantises. A process holds what it once held: each recipe wants one of its own.

    `place`: the folder that gets the scratch file. Raises InputError, MachineError, OSError.
    """
    started = time.perf_counter()
    shards = LocalShards(open_source(folder))
    source = shards.source
    plan = make_plan(match(source), RECIPES[recipe], lambda w: source.entry(w.name).dtype)
    _ = shards.facts
    opening = time.perf_counter() - started

    copied = list(_steps(plan, source, lambda form: form != "affine4"))
    quantised = list(_steps(plan, source, lambda form: form == "affine4"))
    timed = copied if recipe == NATIVE else quantised
    with SourceReader(source) as reader, Streamer(reader) as streamer:
        for steps in (copied, quantised):
            for kind in {type(step) for step in steps}:  # touches memory and code as far as they go
                first = [step for step in _spread(steps) if type(step) is kind][: 2 * DEPTH]
                _into(place, iter(first), streamer)
        rate = _pace(timed, streamer, place, seconds) if timed else None
    return Trial(opening, rate, _resident())


def _steps(
    plan: ConversionPlan, source: Source, wanted: Callable[[Format], bool]
) -> Iterator[ConversionStep]:
    for file in plan.files:
        targets = tuple(target for target in file.targets if wanted(target.format))
        records = file.records if file.records is not None and wanted(file.records.format) else None
        yield from steps_for(replace(file, targets=targets, records=records), source, BLOCK)


def _spread(steps: list[ConversionStep]) -> list[ConversionStep]:
    """The same steps so that the first n of them are from everywhere, whatever n."""
    golden = 0.6180339887498949
    order = sorted(range(len(steps)), key=lambda number: number * golden % 1)
    return [steps[number] for number in order]


def _pace(steps: list[ConversionStep], streamer: Streamer, place: Path, seconds: float) -> float:
    """Bytes written per second."""
    stream, until = cycle(_spread(steps)), time.perf_counter() + seconds
    written, taken = 0, 0.0
    while time.perf_counter() < until:
        part = islice(stream, SCRATCH // _SLOT)
        more, longer = _into(place, (step for step in part if time.perf_counter() < until), streamer)
        written, taken = written + more, taken + longer
    return written / taken


def _into(place: Path, steps: Iterator[ConversionStep], streamer: Streamer) -> tuple[int, float]:
    """Run steps into a new scratch file; its bytes, and the seconds until they are on disk.

    Giving its space back is not counted: a conversion doesn't.
    """
    written: list[int] = []
    with TemporaryDirectory(dir=place, prefix=".dsv4-mlx-") as folder:
        path = Path(folder) / "scratch"
        out = OutFile(path)
        path.unlink()
    try:
        started = time.perf_counter()
        moved = (_Moved(step, number * _SLOT) for number, step in enumerate(steps))
        streamer.run(moved, out, written.append)
        to_disk(out.descriptor)
        return sum(written), time.perf_counter() - started
    finally:
        out.close()


@dataclass(frozen=True)
class _Moved:
    """A step whose bytes go elsewhere, with the same place within a page."""

    step: ConversionStep
    base: int

    @property
    def own_digest(self) -> bool:
        return self.step.own_digest

    def run(self, reader: SourceReader, buffer: memoryview) -> list[OutputSlice]:
        at, moved = self.base, []
        for piece in self.step.run(reader, buffer):
            offset = at + piece.offset % PAGE
            moved.append(OutputSlice(offset, piece.data, piece.digests))
            at = -(-(offset + len(piece.data)) // PAGE) * PAGE
        return moved


def _resident() -> int:
    """The most memory that this process held so far, MLX's included."""
    if sys.platform == "linux":  # ru_maxrss would be the parent's, if that was larger
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    metal = mx.get_peak_memory() if mx.metal.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + metal


def main(official: Path, place: Path, seconds: float, recipe: str) -> None:
    """What a process of its own does: prints what it found as a line of JSON, or ends with the reason."""
    try:
        print(json.dumps(asdict(rehearse(official, place, seconds, recipe))))
    except Dsv4Error as error:
        sys.exit(error.message)
    except OSError as error:
        sys.exit(f"{error.strerror or error} ({error.filename or place})")
