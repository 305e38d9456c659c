"""dsv4-mlx plan"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import table, tell
from dsv4_mlx.cli.disk_work import existing, name_disk
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.options import JsonOption
from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.hub.models import commands_for, on_the_hub
from dsv4_mlx.machine.support import at_home
from dsv4_mlx.machine.units import duration, parse_memory, parse_speed, rate, size, speed

if TYPE_CHECKING:
    from dsv4_mlx.convert.trial import ConversionThroughput
    from dsv4_mlx.planning.plan import ModelPlan, Option
    from dsv4_mlx.planning.speed import Speeds
SPEEDS = ("tokens/s predicted", "at most", "prompt tokens/s predicted")

NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="SIZE",
        help="Bytes per second of the download, or `measure`: 3 seconds of it. Default: the last one's.",
    ),
]


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
    network: NetworkOption = None,
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
    from dsv4_mlx.machine.limits import installed_memory
    from dsv4_mlx.planning.candidates import DEFAULT, RELEASES, candidates_for
    from dsv4_mlx.planning.fit import budget_here, budget_of_mac
    from dsv4_mlx.planning.plan import plan as make
    from dsv4_mlx.planning.plan import with_more_memory
    from dsv4_mlx.planning.speed import Speeds, measured_speeds

    repository, folder = DEFAULT, None
    if model in RELEASES and on_the_hub(model):
        repository = model
        tell(f"planned from the published config of {model}; next: {commands_for(model)[1]}")
    elif model:
        folder = model_folder(model)
    ways, config = candidates_for(folder, repository)
    come = _network(network, repository)
    speeds = Speeds(_speed(bandwidth, "--bandwidth"), _speed(disk, "--disk"), come)
    throughput: ConversionThroughput | str = "for another machine"
    if memory is None:
        here = existing(at_home(place))
        if not here.is_dir():
            raise InputError(f"{here} is a file", next="give a folder as --dir")
        name_disk(here)
        budget, speeds, installed = budget_here(), measured_speeds(speeds, here), installed_memory()
        throughput = _throughput(folder, here) if ways[0].shards else "nothing is converted"
    else:
        installed = _memory(memory)
        budget = budget_of_mac(installed)
    more = with_more_memory(ways, config, installed, budget) if budget.mac else []
    known = None if isinstance(throughput, str) else throughput
    place = place.rstrip("/") or "/"
    found = make(
        ways, config, budget, speeds, str(folder or ""),
        repository=repository, throughput=known, place=place,
    )  # fmt: skip
    if as_json:
        facts = {"calibration": throughput if known is None else asdict(known)}
        print(json.dumps(found.to_json() | facts, indent=1))
    else:
        show(found, speeds, throughput, more)


def _throughput(folder: Path | None, here: Path) -> ConversionThroughput | str:
    from dsv4_mlx.planning.rehearsal import SECONDS, throughput_here

    what = "pieces of this checkpoint" if folder is not None else "a made-up piece of V4-Flash"
    tell(f"converting {what} for {SECONDS:.0f} s in {here}; they are deleted")
    return throughput_here(folder, here, program="dsv4_mlx.cli.main")


def _memory(text: str) -> int:
    found = parse_memory(text)
    if not found:
        raise UsageError(f"--for is {text!r}, expected a Mac's memory such as 64GB")
    return found


def _speed(text: str | None, option: str) -> float | None:
    found = None if text is None else parse_speed(text)
    if text is not None and not found:
        raise UsageError(f"{option} is {text!r}, expected a speed such as 5GB/s or 100Mbit/s")
    return found


def _network(text: str | None, repository: str) -> float | None:
    from dsv4_mlx.hub.rate import kept, measure

    if text is None:
        return kept()
    if text != "measure":
        return _speed(text, "--network")
    from dsv4_mlx.hub.remote import Retry, look

    tell(f"measuring how fast {repository} comes; nothing of it is kept")
    return measure(look(repository, retry=Retry(tell=tell)))


def show(
    found: ModelPlan, speeds: Speeds, throughput: ConversionThroughput | str, more: Sequence[str] = ()
) -> None:
    """For people, on stdout. `more`: sentences about what would run better."""
    held = f", of which other programs hold {size(found.taken)} now" if found.taken else ""
    print(f"for {size(found.limit)} that a model may use{held}")
    for sentence in more:
        print(sentence)
    table(
        "how each runs",
        ("stored as", "weights", "runs", "context", *SPEEDS),
        [
            (o.name, size(o.disk.kept), _runs(o), f"{o.fit.context:,}" if o.fit.context else "-", *_rates(o))
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
    elif isinstance(throughput, str):
        print(f"no time of converting is predicted: {throughput}")
    if speeds.memory is None:
        print("no speed is predicted: give --bandwidth and --disk")
    else:
        print("speeds are predicted and not calibrated yet: nothing was run")
    for option in found.options:
        if option.name == found.best:
            if option.download_seconds:
                print(
                    f"the download takes {duration(option.download_seconds)} at {speed(speeds.network or 0)}"
                )
            print(f"best here: {option.name}")
            for command in option.commands:
                print(f"  {command}")
    if found.best is None:
        need = min(option.fit.need for option in found.options)
        print(f"none of them runs: the least needs {size(need)}")


def _runs(option: Option) -> str:
    fit = option.fit
    return f"no: needs {size(fit.need)}" if fit.placement == "too large" else fit.describe()


def _rates(option: Option) -> tuple[str, ...]:
    p = option.prediction
    return ("-", "-", "-") if p is None else (p.describe(), rate(p.bound), rate(p.prefill))
