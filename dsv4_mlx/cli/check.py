"""dsv4-mlx check"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import Progress, progress
from dsv4_mlx.cli.options import JsonOption, ModelArgument, OpsMode, OpsOption, verdicts_file
from dsv4_mlx.cli.sources import model_folder
from dsv4_mlx.errors import InputError, MachineError

if TYPE_CHECKING:
    from dsv4_mlx.acceptance import Acceptance

_WORD = {True: "ok", False: "WRONG", None: "not asked"}


def check(
    model: ModelArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="A layer of each kind, and no long answer: minutes, not hours.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write the findings as JSON, for an issue."),
    ] = None,
    ops: OpsOption = OpsMode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Accept a model on this machine: files, numbers, kernels, every layer, cuts, a long answer.

    Exits with 2 if anything is wrong, and names it. The report holds no prompts, answers or paths.

    Example: dsv4-mlx check ~/models/flash --report check.json
    """
    from dsv4_mlx.acceptance import accept
    from dsv4_mlx.checking import choose

    if report is not None and not report.absolute().parent.is_dir():
        raise InputError(f"there is no folder {str(report.parent)!r} to write to", where=report)

    def bar(title: str, unit: str) -> AbstractContextManager[Progress]:
        return progress(title, unit, quiet=as_json)

    folder = model_folder(model)
    with bar("checking Metal kernels", "kernels") as show:
        choice = choose(ops.value, verdicts_file(), progress=show)
    found = accept(folder, choice.ops, choice.verdicts, bar, quick=quick)
    text = json.dumps(found.to_json(), indent=1)
    if report is not None:
        try:
            report.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise MachineError(f"the report can't be written: {error.strerror}", where=report) from None
    if as_json:
        print(text)
    else:
        _show(found)
    if not found.ok:
        wrong = ", ".join(step.name for step in found.steps if step.ok is False)
        raise InputError(f"this model is not accepted here: {wrong}", next="the lines above name each fault")


def _show(found: Acceptance) -> None:
    for step in found.steps:
        print(f"{step.name}: {_WORD[step.ok]}")
        for line in step.found[:20]:
            print(f"  {line}")
        if len(step.found) > 20:
            print(f"  and {len(step.found) - 20} more")
    for line in found.to_json()["not_asked"]:
        print(f"not asked: {line}")
