"""dsv4-mlx info"""

from __future__ import annotations

import json

from dsv4_mlx.cli.console import table
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.options import JsonOption, ModelArgument
from dsv4_mlx.machine.units import size


def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show a model: architecture, recipe, bytes per component, memory by context length.

    Example: dsv4-mlx info ~/models/flash
    """
    from dsv4_mlx.engine.info import facts
    from dsv4_mlx.planning.candidates import fit_here

    folder = model_folder(model)
    found = facts(folder)
    here = fit_here(folder)
    found["here"] = here.to_json()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    shape = found["architecture"]
    print(
        f"DeepSeek V4 ({found['checkpoint']}), recipe {found['recipe']}: "
        f"{shape['layers']} layers "
        f"({shape['window_only']} window, {shape['csa']} CSA, {shape['hca']} HCA), "
        f"{shape['experts']} experts, "
        f"{shape['experts_per_token']} a token, width {shape['hidden_size']}, "
        f"vocabulary {shape['vocab_size']}"
    )
    total = found["bytes"]["total"]
    rows = [
        (name, size(count), f"{count / total:.1%}") for name, count in found["bytes"]["components"].items()
    ]
    table("weights", ("component", "stored", "share"), [*rows, ("total", size(total), "100.0%")])
    table(
        "memory of one conversation",
        ("context", "state", "with weights"),
        [(f"{e['context']:,}", size(e["state"]), size(e["total"])) for e in found["memory"]],
    )
    runs = (
        f"{here.slots} of {shape['experts']} experts of each layer in memory" if here.slots else "too large"
    )
    print(f"here: {here.placement}, {runs}, context {here.context:,}")
    print(
        f"rows are {found['row_format']} here; "
        f"the state grows by {found['bytes_per_token']:.0f} bytes a token"
    )
