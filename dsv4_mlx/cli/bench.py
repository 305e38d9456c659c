"""dsv4-mlx bench"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dsv4_mlx.cli.chart import Line, Panel, check_plot, draw
from dsv4_mlx.cli.console import progress, table
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, EngineArguments, grouped
from dsv4_mlx.cli.options import JsonOption, ModelArgument
from dsv4_mlx.errors import UsageError
from dsv4_mlx.machine.units import parse_tokens, size


@grouped
def bench(
    model: ModelArgument,
    *,
    context: Annotated[
        str, typer.Option("--context", metavar="N,N,...", help="Tokens in the context at each measurement.")
    ] = "512,4096",
    decode: Annotated[int, typer.Option("--decode", metavar="N", min=1, help="Tokens decoded at each.")] = 64,
    engine: Annotated[EngineArguments, ENGINE.but("context")],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the speeds as well.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure prefill and decode speed, time to first token and memory, as they are on this machine.

    Every figure is the median of three passes; the least and the largest are beside it.

    Example: dsv4-mlx bench ~/models/flash --context 512,4096,32768 --decode 64
    """
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.evaluation.throughput import check_plan, frontiers, report

    contexts = parse_contexts(context)
    check_plan(contexts, decode, contexts[-1] + decode)
    check_plot(plot)
    folder = model_folder(model)
    options = engine.with_kernels(context=contexts[-1] + decode)
    with progress("loading") as loading:
        opened = Engine.open(folder, options, loading)
    with progress("measuring", "tokens") as show:
        found = report(opened, folder, frontiers(opened, contexts, decode, progress=show), decode)
    if plot is not None:
        _draw(plot, found)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)


def parse_contexts(text: str) -> list[int]:
    """ "512,4K" -> [512, 4096]. Raises UsageError."""
    found = [parse_tokens(part) for part in text.split(",")]
    if None in found:
        raise UsageError(
            f"--context is {text!r}, expected numbers with commas between them", next="--context 512,4096"
        )
    return [count for count in found if count is not None]


def _print(found: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = []
    for one in found["frontiers"]:
        read = one["bytes_per_token"]
        rows.append(
            (
                f"{one['context']:,}",
                _spread(one["prefill_tokens_per_second"]),
                _spread(one["decode_tokens_per_second"]),
                _spread(one["first_token_seconds"]),
                size(one["memory_bytes"]["active"]),
                size(one["memory_bytes"]["peak"]),
                f"{size(read['weights'])} + {size(read['state'])}",
            )
        )
    header = ("context", "prefill tok/s", "decode tok/s", "first token s", "active", "peak")
    table("speed", (*header, "read per token: weights + state"), rows)
    for one in found["frontiers"]:
        if paging := one.get("paging"):
            print(
                f"experts at {one['context']:,}: {paging['hit_rate']:.1%} in memory, "
                f"{size(round(paging['bytes']))} read and {paging['stall_ms']:.1f} ms waited per token"
            )
    if "experts" in found:
        print(f"experts: {found['experts']}")
    print(f"median of {found['passes']} passes (least to largest), {found['decoded']} tokens decoded at each")
    print(f"measured on: {found['machine']}")


def _spread(value: dict[str, float]) -> str:
    return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"


def _draw(path: Path, found: dict[str, Any]) -> None:
    panels = []
    for title, key, unit in (
        ("Prefill", "prefill_tokens_per_second", "tokens / s"),
        ("Decode", "decode_tokens_per_second", "tokens / s"),
        ("Time to first token", "first_token_seconds", "s"),
    ):
        values: list[tuple[int, dict[str, float]]] = [
            (one["context"], one[key]) for one in found["frontiers"]
        ]
        points = [(float(context), value["median"]) for context, value in values]
        spread = [(value["low"], value["high"]) for _, value in values]
        panels.append(Panel(title, "tokens in the context", unit, [Line("", points, spread)]))
    draw(path, panels, f"measured on: {found['machine']}")
