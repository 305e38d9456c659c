"""dsv4-mlx convert"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress, size
from dsv4_mlx.cli.options import JsonOption
from dsv4_mlx.cli.sources import official_folder
from dsv4_mlx.cli.verify import raise_if_damaged, show_report


def convert(
    source: Annotated[
        str, typer.Argument(help="The official checkpoint: a folder, or a Hub id already downloaded.")
    ],
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
    verify: Annotated[
        bool, typer.Option("--verify", help="Then compare every converted value with the official one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert the official FP8/FP4 checkpoint for MLX. The default recipe changes no weight.

    Example: dsv4-mlx convert ~/Downloads/DeepSeek-V4-Flash ~/models/flash
    """
    from dsv4_mlx.convert import convert as run
    from dsv4_mlx.convert import verify as prove

    folder = official_folder(source)

    with progress("converting") as show:
        summary = run(
            folder,
            target,
            recipe,
            resume=resume,
            progress=lambda done, total, file: show(done, total),
        )
    facts = summary.to_json()
    if not as_json:
        print(f"{summary.status}: {summary.tensors} official tensors, {size(summary.bytes)} -> {target}")
        for name in summary.kept:
            print(f"kept as it was: {name}")
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
