"""dsv4-mlx plan"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import table, tell
from dsv4_mlx.cli.disk_work import existing, name_disk
from dsv4_mlx.cli.models import model_folder
from dsv4_mlx.cli.options import JsonOption
from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.machine.units import duration, parse_memory, parse_speed, size

if TYPE_CHECKING:
    from dsv4_mlx.convert.trial import Pace
    from dsv4_mlx.planning.plan import ModelPlan, Option
    from dsv4_mlx.planning.speed import Speeds


def plan(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="As in other commands. Default: V4-Flash.")
    ] = "",
    memory: Annotated[
        str | None,
        typer.Option("--for", metavar="SIZE", help="Plan for a Mac with this memory, such as 64GB."),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option("--bandwidth", metavar="SIZE", help="Its memory's bytes per second, such as 400GB."),
    ] = None,
    disk: Annotated[
        str | None, typer.Option("--disk", metavar="SIZE", help="Its disk's bytes per second, such as 5GB.")
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="SIZE", help="Bytes per second of the download.")
    ] = None,
    place: Annotated[
        str, typer.Option("--dir", metavar="DIR", help="Where what is made would go. Default: ~/models.")
    ] = "~/models",
    as_json: JsonOption = False,
) -> None:
    """Say which recipe would run how, on how much disk, and what to type. Nothing is downloaded or changed.

    Without --for it is for this machine: its speeds are measured, and some pieces converted, for seconds
    each. What that writes to --dir, 1.5 GB at most, is deleted again.

    Example: dsv4-mlx plan --for 64GB --bandwidth 400GB --disk 5GB
    """
    from dsv4_mlx.planning.candidates import ways_of
    from dsv4_mlx.planning.plan import plan as make
    from dsv4_mlx.planning.speed import Speeds, default_gpu_limit, this_machine

    folder = model_folder(model) if model else None
    ways, config = ways_of(folder)
    speeds = Speeds(*(_speed(text, name) for text, name in zip(
        (bandwidth, disk, network), ("--bandwidth", "--disk", "--network"), strict=True)))  # fmt: skip
    pace: Pace | str = "for another machine"
    if memory is None:
        here = existing(Path(place).expanduser())
        if not here.is_dir():
            raise InputError(f"{here} is a file", next="give a folder as --dir")
        name_disk(here)
        limit, element, speeds = this_machine(speeds, here)
        pace = _pace(folder, here) if ways[0].shards else "nothing is converted"
    else:
        installed = parse_memory(memory)
        if not installed:
            raise UsageError(f"--for is {memory!r}, expected a Mac's memory such as 64GB")
        limit, element = default_gpu_limit(installed), 2
    known = None if isinstance(pace, str) else pace
    found = make(
        ways, config, limit, element, speeds, str(folder or ""), pace=known, place=place.rstrip("/") or "/"
    )
    if as_json:
        facts = {"calibration": pace if known is None else asdict(known)}
        print(json.dumps(found.to_json() | facts, indent=1))
    else:
        show(found, speeds, pace)


def _pace(folder: Path | None, here: Path) -> Pace | str:
    from dsv4_mlx.planning.rehearsal import SECONDS, pace_here

    what = "pieces of this checkpoint" if folder is not None else "a made-up piece of V4-Flash"
    tell(f"converting {what} for {SECONDS:.0f} s in {here}; they are deleted")
    return pace_here(folder, here, program="dsv4_mlx.cli.main")


def _speed(text: str | None, option: str) -> float | None:
    found = None if text is None else parse_speed(text)
    if text is not None and not found:
        raise UsageError(f"{option} is {text!r}, expected a speed such as 5GB/s or 100Mbit/s")
    return found


def show(found: ModelPlan, speeds: Speeds, pace: Pace | str) -> None:
    """For people, on stdout."""
    print(f"for {size(found.limit)} that a model may use")
    table(
        "how each runs",
        ("stored as", "weights", "runs", "context", "tokens/s at most (predicted)"),
        [
            (o.name, size(o.disk.kept), _runs(o), f"{o.fit.context:,}" if o.fit.context else "-", _rate(o))
            for o in found.options
        ],
    )
    table(
        "disk",
        ("stored as", "download", "at most", "at most, with --delete-source", "afterwards"),
        [
            (o.name, size(o.disk.download), size(o.disk.peak), size(o.disk.peak_deleting), size(o.disk.kept))
            for o in found.options
        ],
    )
    made = [(option, option.making) for option in found.options if option.making is not None]
    if made:
        table(
            "converting here (predicted from some seconds of it)",
            ("stored as", "takes", "memory at most"),
            [(o.name, duration(making.seconds), size(making.memory)) for o, making in made],
        )
    elif isinstance(pace, str):
        print(f"no time of converting is predicted: {pace}")
    if speeds.memory is None:
        print("no speed is predicted: give --bandwidth and --disk")
    for option in found.options:
        if option.name == found.best:
            if option.download_seconds:
                print(f"the download takes {duration(option.download_seconds)} at that network speed")
            print(f"best here: {option.name}")
            for command in option.commands:
                print(f"  {command}")
    if found.best is None:
        need = min(option.fit.need for option in found.options)
        print(f"none of them runs: the least needs {size(need)}")


def _runs(option: Option) -> str:
    if option.fit.how == "paged":
        return f"paged, {option.fit.slots} experts a layer"
    return option.fit.how if option.fit.how == "resident" else f"no: needs {size(option.fit.need)}"


def _rate(option: Option) -> str:
    p = option.prediction
    if p is None or p.low is None or p.high is None:
        return "-"
    return f"{p.high:.1f}" if p.low == p.high else f"{p.low:.1f} to {p.high:.1f}"
