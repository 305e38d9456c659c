"""dsv4-mlx eval"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import progress, table
from dsv4_mlx.cli.kernels import chosen
from dsv4_mlx.cli.options import (
    ExpertMemoryOption,
    ExpertThreadsOption,
    JsonOption,
    ModelArgument,
    NumericsMode,
    NumericsOption,
    OpsMode,
    OpsOption,
)
from dsv4_mlx.cli.sources import model_folder
from dsv4_mlx.errors import InputError, MachineError

if TYPE_CHECKING:
    from dsv4_mlx.evaluation import Evaluation
    from dsv4_mlx.evaluation.figures import Distance, Figure


def evaluate(
    model: ModelArgument,
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="What is to be predicted, UTF-8.")],
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL2", help="Measure the distance from this model as well."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=3, help="Use the text's first N tokens.")
    ] = 4096,
    numerics: NumericsOption = NumericsMode.OFFICIAL,
    ops: OpsOption = OpsMode.AUTO,
    expert_memory: ExpertMemoryOption = "auto",
    expert_threads: ExpertThreadsOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw perplexity by context as well.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Perplexity by length of context, and the distance between distributions, with 95% intervals.

    The distance between the model's own two numerics comes first: nothing below it means anything.

    Example: dsv4-mlx eval ~/models/flash-4bit --reference ~/models/flash --text book.txt
    """
    from dsv4_mlx.engine import EngineOptions
    from dsv4_mlx.evaluation import evaluate as run

    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text can't be read: {error}", where=text) from None
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InputError(f"there is no folder {str(plot.parent)!r} to draw in", where=plot)
    folder = model_folder(model)
    other = None if reference is None else model_folder(reference)
    options = EngineOptions(
        numerics=numerics.value, ops=chosen(ops), expert_memory=expert_memory, expert_threads=expert_threads
    )
    with progress("tokens", "tokens", quiet=as_json) as show:
        found = run(folder, content, tokens, options, other, show)
    if plot is not None:
        _draw(plot, found)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show(found)


def _show(found: Evaluation) -> None:
    rows = [(f"{b.begin:,} to {b.end - 1:,}", f"{b.tokens:,}", _figure(b.perplexity)) for b in found.buckets]
    table("perplexity", ("tokens before", "tokens", "perplexity"), rows)
    distances = [_distance("its own exact numerics (the floor)", found.floor)]
    if found.distance is not None:
        distances.append(_distance("the reference", found.distance))
    table("distance from", ("distance from", "positions", "KL, nats", "same best token"), distances)
    print(f"value (95% interval), computed on: {found.machine}")


def _distance(name: str, found: Distance) -> tuple[str, ...]:
    return name, f"{found.positions:,}", _figure(found.kl), _figure(found.agreement)


def _figure(figure: Figure) -> str:
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"


def _draw(path: Path, found: Evaluation) -> None:
    from dsv4_mlx.cli.chart import Line, Panel, chart

    points = [(float(b.end - 1), b.perplexity.value) for b in found.buckets]
    spread = [(b.perplexity.low, b.perplexity.high) for b in found.buckets]
    panel = Panel("Perplexity", "tokens before, at most", "perplexity", [Line("", points, spread)])
    try:
        path.write_text(chart([panel], f"computed on: {found.machine}"), encoding="utf-8")
    except OSError as error:
        raise MachineError(f"the plot can't be written: {error.strerror}", where=path) from None
