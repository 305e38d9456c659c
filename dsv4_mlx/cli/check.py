"""dsv4-mlx check"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import Progress, progress, tell
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, EngineArguments, grouped
from dsv4_mlx.cli.options import JsonOption, ModelArgument
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.hub.models import official_folder

if TYPE_CHECKING:
    from dsv4_mlx.evaluation.report import Acceptance, AcceptanceStep

SHOWN = 20  # lines of a step that are printed; the report has them all
_WORD = {True: "ok", False: "WRONG", None: "not asked"}


@grouped
def check(
    model: ModelArgument,
    *,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A layer of each kind, needles in 4K tokens only, and no long answer."),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="SOURCE", help="Compare every value with this official checkpoint as well."
        ),
    ] = None,
    logprobs: Annotated[
        Path | None,
        typer.Option(
            "--logprobs", metavar="FILE", help="Compare with stored log-probabilities: docs/acceptance.md."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write the findings as JSON, for an issue."),
    ] = None,
    engine: Annotated[EngineArguments, ENGINE.only("expert_memory", "expert_threads", "wire", "ops")],
    as_json: JsonOption = False,
) -> None:
    """Accept a model on this machine: files, numbers, kernels, every layer, cuts, needles, a long answer.

    Exits with 2 if anything is wrong, and names it. The report is written after every step, and holds no
    prompts, answers or paths.

    Example: dsv4-mlx check ~/models/flash --report check.json
    """
    from dsv4_mlx.engine.info import kernel_facts
    from dsv4_mlx.evaluation.acceptance import AcceptanceOptions, AcceptanceTools, accept
    from dsv4_mlx.evaluation.report import wrong
    from dsv4_mlx.ops.selftest.choose import choose

    if report is not None and not report.absolute().parent.is_dir():
        raise InputError(f"there is no folder {str(report.parent)!r} to write to", where=report)
    if report is not None and report.exists() and not report.is_file():
        raise InputError(
            "the report would have to replace something that is no file",
            where=report,
            next="name a file; --json writes to stdout",
        )

    def bar(title: str, unit: str) -> AbstractContextManager[Progress]:
        return progress(title, unit, quiet=as_json)

    def keep(known: Acceptance) -> None:
        if report is not None:
            _write(report, known)
            if known.stopped and known.stopped != "not finished":
                tell(f"{report} holds what was known by now")
        if not as_json and known.stopped == "not finished":
            _show(known.steps[-1])
        if as_json and known.stopped != "not finished":
            print(_text(known), flush=True)

    folder = model_folder(model)
    source = None if against is None else official_folder(against)
    with bar("checking Metal kernels", "kernels") as show:
        choice = choose(engine.ops, model=partial(kernel_facts, folder), progress=show)
    wanted = AcceptanceOptions(quick, source, logprobs, engine.options())
    found = accept(folder, AcceptanceTools(choice.ops, choice.verdicts), wanted, bar, keep)
    if not found.ok:
        names = ", ".join(wrong(found.steps))
        raise InputError(f"this model is not accepted here: {names}", next="the lines above name each fault")


def _write(path: Path, known: Acceptance) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(_text(known) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MachineError(f"the report can't be written: {error.strerror}", where=path) from None


def _text(known: Acceptance) -> str:
    """JSON without the user's home folder, which a compiler's message may name."""
    text = json.dumps(known.to_json(), indent=1, allow_nan=False)
    try:
        home = json.dumps(str(Path.home()))[1:-1]
    except RuntimeError:  # there is none
        return text
    return text.replace(home, "~") if len(home) > 1 else text


def _show(step: AcceptanceStep) -> None:
    print(f"{step.name}: {_WORD[step.ok]} ({step.seconds:.1f} s)")
    lines = [*step.told, *(line for line in step.found if line not in step.told)]
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")
    print(end="", flush=True)
