"""The budget: no figure of ours grows without somebody writing down that it may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "budget.json"
OURS = ("reference", "kernels")


def write(ledger: dict[str, Any]) -> None:
    """Today's figures of our paths become the budget."""
    FILE.write_text(json.dumps(_ours(ledger), indent=1) + "\n", encoding="utf-8")


def exceeded(ledger: dict[str, Any]) -> list[str]:
    """A line per figure of `ledger` that is larger than the budget, or that the budget doesn't have."""
    allowed = json.loads(FILE.read_text(encoding="utf-8"))
    lines = []
    for name, value in _ours(ledger).items():
        limit = allowed.get(name)
        if limit is None or value > limit:
            lines.append(f"{name} is {value}, the budget is {limit}")
    return lines


def _ours(ledger: dict[str, Any]) -> dict[str, int]:
    return {
        f"{context}/{step}/{path}/{field}": value
        for context, steps in ledger["contexts"].items()
        for step, paths in steps.items()
        for path in OURS
        if paths[path] is not None
        for field, value in paths[path].items()
    }
