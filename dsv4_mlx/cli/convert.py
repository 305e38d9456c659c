"""dsv4-mlx convert"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import progress, tell
from dsv4_mlx.cli.disk_work import ExcludeOption, filling
from dsv4_mlx.cli.download import RevisionOption, stages
from dsv4_mlx.cli.options import JsonOption
from dsv4_mlx.cli.verify import raise_if_damaged, show_report
from dsv4_mlx.errors import UsageError
from dsv4_mlx.hub.models import official_folder, on_the_hub
from dsv4_mlx.machine.units import size

if TYPE_CHECKING:
    from dsv4_mlx.convert.summary import Summary


def convert(
    source: Annotated[str, typer.Argument(help="The official checkpoint: a folder, or its name on the Hub.")],
    target: Annotated[Path, typer.Argument(help="The folder to make: new or empty.")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", help="native: lossless. 4bit: attention and the rest but experts to 4 bits."
        ),
    ] = "native",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished conversion, or start one.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Check a finished conversion, and make again only what is damaged."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then compare every converted value with the official one.")
    ] = False,
    delete_source: Annotated[
        bool, typer.Option("--delete-source", help="Delete downloaded files as soon as they are converted.")
    ] = False,
    revision: RevisionOption = None,
    exclude: ExcludeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert the official FP8/FP4 checkpoint for MLX. The default recipe changes no weight.

    A name on the Hub is downloaded at the same time, to TARGET.official; with --delete-source the disk never
    holds more than the result and two of its files.

    Example: dsv4-mlx convert deepseek-ai/DeepSeek-V4-Flash ~/models/flash --delete-source
    """
    from dsv4_mlx.convert.verify import verify as prove

    if on_the_hub(source):
        if delete_source and verify:
            raise UsageError(
                "--verify compares with files that --delete-source deletes", next="leave one out"
            )
        summary = _from_hub(source, target, recipe, resume, repair, delete_source, revision, exclude)
        folder = Path(summary.source)
    else:
        if delete_source or revision is not None:
            raise UsageError(
                "--delete-source and --revision are for a checkpoint from the Hub",
                next="leave them out for a folder",
            )
        folder = official_folder(source)
        summary = _from_folder(folder, target, recipe, resume, repair, exclude)
    facts = summary.to_json()
    if not as_json:
        _show(summary, target)
    report = None
    if verify:
        with progress("verifying") as show:
            report = prove(target, folder, progress=lambda done, total, file: show(done, total))
        facts["verification"] = report.to_json()
        if not as_json:
            show_report(report)
    if as_json:
        print(json.dumps(facts, indent=1))
    if report is not None:
        raise_if_damaged(report)


def _show(summary: Summary, target: Path) -> None:
    print(f"{summary.status}: {summary.tensors} official tensors, {size(summary.bytes)} -> {target}")
    if summary.extra:
        print(f"blocks after the layers, kept: {', '.join(summary.extra)}")
    if summary.left_out:
        print(f"copies of embedding and head, left out: {', '.join(summary.left_out)}")
    for name in summary.repaired:
        print(f"made again: {name}")
    for name in summary.kept:
        print(f"kept as it was: {name}")


def _from_folder(
    folder: Path, target: Path, recipe: str, resume: bool, repair: bool, exclude: bool | None
) -> Summary:
    from dsv4_mlx.convert.run import convert as run

    with filling("converting", [target], exclude) as show:
        return run(
            folder,
            target,
            recipe,
            resume=resume,
            repair=repair,
            progress=lambda done, total, file: show(
                done, total, f"writing {file.removesuffix('.safetensors')}" if file else "checking"
            ),
        )


def _from_hub(
    source: str, target: Path, recipe: str, resume: bool, repair: bool, delete: bool, revision: str | None,
    exclude: bool | None,
) -> Summary:  # fmt: skip
    from dsv4_mlx.hub.download import convert_from_hub, source_folder
    from dsv4_mlx.hub.remote import Retry

    target = Path(os.path.abspath(target))  # "." has a name then
    with filling("downloading and converting", [target, source_folder(target)], exclude) as show:
        return convert_from_hub(
            source, target, recipe, delete=delete, resume=resume, repair=repair, revision=revision,
            retry=Retry(tell=tell), progress=stages(show),
        )  # fmt: skip
