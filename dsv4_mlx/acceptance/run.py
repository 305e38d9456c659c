"""All steps of the acceptance, in the order in which a failure explains the next."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dsv4_mlx import __version__
from dsv4_mlx.acceptance.answers import cuts, long_answer
from dsv4_mlx.acceptance.files import files, numbers
from dsv4_mlx.acceptance.layers import layers, sample
from dsv4_mlx.acceptance.step import Step
from dsv4_mlx.checking import Verdict
from dsv4_mlx.engine.engine import Engine, EngineOptions
from dsv4_mlx.engine.machine import description
from dsv4_mlx.ops import Ops
from dsv4_mlx.weights.load import find_model

LONG = 20_000  # tokens of the long answer
Bar = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]

NOT_ASKED = (
    "needles in long contexts: not built yet",
    "official log-probabilities: no set with a clean licence is stored",
)


@dataclass(frozen=True)
class Acceptance:
    """The steps, and what they were done with. Fit to be shown to others: no prompts, no paths."""

    steps: tuple[Step, ...]
    made_with: dict[str, str]
    quick: bool

    @property
    def ok(self) -> bool:
        return all(step.ok is not False for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "quick": self.quick,
            "made_with": self.made_with,
            "steps": [asdict(step) for step in self.steps],
            "not_asked": list(NOT_ASKED),
        }


def accept(
    folder: Path, ops: Ops, verdicts: Sequence[Verdict], bar: Bar, *, quick: bool = False, long: int = LONG
) -> Acceptance:
    """Run every step; `quick`: a layer of each kind instead of all, and no long answer.

    `ops` and `verdicts`: what `dsv4_mlx.checking` chose here and why. `bar(title, unit)` shows progress.
    A damaged model raises nothing: what is wrong is in the steps. Raises InputError for a folder that is no
    model, DoesNotFit where nothing of it can run.
    """
    stored = find_model(folder)
    converted = stored.manifest.recipe != "official"
    with bar("files", "bytes") as show:
        steps = [files(folder, converted, show)]
    steps += [numbers(stored.config), kernels(verdicts)]
    if steps[0].ok is not False:  # else what the layers would say follows from it
        chosen = sample(stored.config) if quick else range(stored.config.layers)
        with bar("layers", "layers") as show:
            steps.append(layers(stored, ops, chosen, show))
        engine = Engine.open(folder, EngineOptions(numerics="exact", ops=ops))
        steps.append(cuts(engine))
        if not quick:
            with bar("a long answer", "tokens") as show:
                steps.append(long_answer(engine, long, show))
    made_with = {
        "dsv4-mlx": __version__, "mlx": version("mlx"), "python": platform.python_version(),
        "machine": description(), "recipe": stored.manifest.recipe, "checkpoint": stored.config.checkpoint,
    }  # fmt: skip
    return Acceptance(tuple(steps), made_with, quick)


def kernels(verdicts: Sequence[Verdict]) -> Step:
    """What the check of every kernel found on this machine."""
    if not verdicts:
        return Step("kernels", None, ("no Metal here, or --ops reference: the references were used",))
    found = tuple(f"{v.kernel} {v.sentence()}" for v in verdicts if not v.works)
    return Step("kernels", not found, found, {"checked": len(verdicts)})
