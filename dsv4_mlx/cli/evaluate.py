"""dsv4-mlx eval"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.chart import Line, Panel, check_plot, draw
from dsv4_mlx.cli.console import progress, table
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, EngineArguments, grouped
from dsv4_mlx.cli.options import JsonOption, ModelArgument
from dsv4_mlx.errors import InputError

if TYPE_CHECKING:
    from dsv4_mlx.evaluation.intervals import Bucket, Distance, Figure
    from dsv4_mlx.evaluation.perplexity import Evaluation

BYTES = 128  # of a text that are read for each token wanted: no token of the vocabulary is longer


@grouped
def evaluate(
    model: ModelArgument,
    *,
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="What is to be predicted, UTF-8.")],
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL2", help="Measure the distance from this model as well."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=3, help="Use the text's first N tokens.")
    ] = 4096,
    engine: Annotated[EngineArguments, ENGINE.but("context", "verify_reads")],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw perplexity by context as well.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Perplexity by length of context, and the distance between distributions, with 95% intervals.

    The distance between the model's own two numerics comes first: nothing smaller means anything.

    Example: dsv4-mlx eval ~/models/flash-4bit --reference ~/models/flash --text book.txt
    """
    from dsv4_mlx.evaluation.perplexity import evaluate as run

    content = _read(text, BYTES * tokens)
    check_plot(plot)
    folder = model_folder(model)
    other = None if reference is None else model_folder(reference)
    options = engine.with_kernels()
    with progress("tokens", "tokens", quiet=as_json) as show:
        found = run(folder, content, tokens, options, other, show)
    if as_json:
        print(json.dumps(found.to_json(), indent=1), flush=True)
    else:
        _show(found)
    if plot is not None:  # last: figures that took hours are out, whatever becomes of the drawing
        _draw(plot, found)


def _read(path: Path, limit: int) -> str:
    """The beginning of a text of UTF-8, `limit` bytes at most."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit)
        # At the limit a character may be cut in two: what there is of it is left out.
        return codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) < limit)
    except OSError as error:
        raise InputError(f"the text can't be read: {error.strerror}", where=path) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}",
            where=path,
            next="give a plain text, converted to UTF-8",
        ) from None


def _show(found: Evaluation) -> None:
    distances = [_distance("its own other numerics (the floor)", found.floor)]
    if found.distance is not None:
        distances.append(_distance("the reference", found.distance))
    table("distance from", ("distance from", "positions", "KL, nats", "same best token"), distances)
    if found.beyond_floor is not None:
        print("further than the floor" if found.beyond_floor else "not surely further than the floor")
    others = [_figure(b.perplexity) for b in found.reference_buckets]
    rows = [
        (f"{b.begin:,} to {b.end - 1:,}", f"{b.tokens:,}", _figure(b.perplexity), *others[i : i + 1])
        for i, b in enumerate(found.buckets)
    ]
    header = ("tokens before", "tokens", "perplexity", *(["the reference's"] if others else []))
    table("perplexity", header, rows)
    print(f"value (95% interval); {found.numerics} numerics; computed on: {found.machine}")


def _distance(name: str, found: Distance) -> tuple[str, ...]:
    return name, f"{found.positions:,}", _figure(found.kl), _figure(found.agreement)


def _figure(figure: Figure) -> str:
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"


def _draw(path: Path, found: Evaluation) -> None:
    def line(name: str, buckets: Sequence[Bucket]) -> Line:
        known = [b for b in buckets if math.isfinite(b.perplexity.high)]
        points = [(float(b.end - 1), b.perplexity.value) for b in known]
        return Line(name, points, [(b.perplexity.low, b.perplexity.high) for b in known])

    lines = [line("the model", found.buckets), line("the reference", found.reference_buckets)]
    lines = [one for one in lines if one.points]
    if not lines:
        raise InputError("there is nothing to draw: the text is too short for an interval", where=path)
    panel = Panel("Perplexity", "tokens before, at most", "perplexity", lines)
    draw(path, [panel], f"computed on: {found.machine}")
