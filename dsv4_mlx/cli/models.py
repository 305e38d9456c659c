"""dsv4-mlx models"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import table
from dsv4_mlx.cli.options import JsonOption
from dsv4_mlx.machine.support import at_home
from dsv4_mlx.machine.units import size


def models(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="Where to look. Default: ~/models and the current folder."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the models on this disk: in folders, in the Hub's cache, and the demo.

    Example: dsv4-mlx models ~/models /Volumes/SSD
    """
    from dsv4_mlx.hub.on_disk import found_models

    places = [at_home(folder) for folder in folders or ("~/models", ".")]
    found = found_models(places)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=1))
        return
    table("models", ("model", "stored as", "size", "state"), [
        (_short(one.model), one.recipe, size(one.bytes), one.state) for one in found
    ])  # fmt: skip


def _short(model: str) -> str:
    home = str(Path.home())
    return "~" + model[len(home) :] if model.startswith(home + "/") else model
