"""dsv4-mlx verify"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import progress, table
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.options import JsonOption, ModelArgument
from dsv4_mlx.errors import InputError
from dsv4_mlx.hub.models import official_folder
from dsv4_mlx.machine.units import size

if TYPE_CHECKING:
    from dsv4_mlx.convert.verify import Report

OFFICIAL = "official"  # the recipe of what is not converted
SHOWN = 20  # damaged tensors printed; --json has them all


def verify(
    model: ModelArgument,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="SOURCE", help="Compare every value with this official checkpoint."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove a converted model: structure, digests and, with --against, every value.

    A downloaded official checkpoint is held against the Hub's digests. Exits with 2 if anything is damaged,
    names it, and says what makes only that again.

    Example: dsv4-mlx verify ~/models/flash --against ~/Downloads/DeepSeek-V4-Flash
    """
    from dsv4_mlx.convert.verify import verify as run

    source = None if against is None else official_folder(against)
    with progress("verifying") as show:
        report = run(model_folder(model), source, progress=lambda done, total, file: show(done, total))
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        show_report(report)
    raise_if_damaged(report)


def show_report(report: Report) -> None:
    """The facts of a verification, on stdout."""
    if report.recipe == OFFICIAL:
        print(
            f"{report.files} files, {size(report.bytes)}, held against the digests of the Hub: "
            f"read in {report.seconds:.1f} s"
        )
        if report.unknown:
            print(f"of {report.unknown} more files with weights no digest is here")
        return
    print(
        f"{report.weights} tensors and {report.expert_records} experts in {report.files} files, "
        f"{size(report.bytes)}, recipe {report.recipe}: read in {report.seconds:.1f} s"
    )
    if report.against is None:
        return
    if report.lossless:
        print("every value equals the official one, bit for bit")
        return
    rows = [
        (
            part,
            size(report.parts[part].bytes),
            f"{e.relative:.2e}",
            f"{e.relative_worst:.2e}",
            e.weight or "-",
        )
        for part, e in report.errors.items()
    ]
    header = ("component", "stored", "worst rms error", "worst error / largest value", "in")
    table("difference from the official weights", header, rows)


def raise_if_damaged(report: Report) -> None:
    """Raises InputError, after naming the damage on stderr."""
    if report.ok:
        return
    for damage in report.damage[:SHOWN]:
        print(f"damaged: {damage.file} {damage.tensor}".rstrip() + f": {damage.what}", file=sys.stderr)
    if len(report.damage) > SHOWN:
        print(f"and {len(report.damage) - SHOWN} more", file=sys.stderr)
    folder = shlex.quote(report.model)
    if report.recipe == OFFICIAL:
        way = f"dsv4-mlx download ORG/NAME {folder} --verify fetches these files again, and no other"
    else:
        recipe = "" if report.recipe == "native" else f" --recipe {report.recipe}"
        source = "SOURCE" if report.against is None else shlex.quote(report.against)
        way = f"dsv4-mlx convert {source} {folder}{recipe} --repair makes these files again, and no other"
    count = len(report.damage)
    raise InputError(
        "1 part of the model is damaged" if count == 1 else f"{count} parts of the model are damaged",
        where=report.model,
        next=way,
    )
