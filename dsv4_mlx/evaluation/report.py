"""What is known so far, fit to be shown to others: no prompts, no answers, no paths.

One question of the acceptance and its answer.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from dsv4_mlx import __version__
from dsv4_mlx.errors import Progress
from dsv4_mlx.machine.limits import description
from dsv4_mlx.weights.stored import StoredModel

Bar = Callable[[str, str], AbstractContextManager[Progress]]  # title and unit of what is counted


@dataclass(frozen=True)
class AcceptanceStep:
    """`ok` is None where the question could not be asked. `found` names what is wrong, or why not asked.

    `told`: what was seen, for people, whatever the verdict. `figures` are plain numbers and texts for the
    report; nothing here holds a prompt, an answer or a path.
    """

    name: str
    ok: bool | None
    found: tuple[str, ...] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    seconds: float = 0.0


FORMAT = 1


@dataclass(frozen=True)
class Acceptance:
    """The steps that are done, and what they were done with. `stopped`: why not all; "" at the end."""

    steps: tuple[AcceptanceStep, ...]
    made_with: dict[str, Any]
    quick: bool
    stopped: str = ""

    @property
    def ok(self) -> bool:
        """Nothing is wrong, and everything was done."""
        return not self.stopped and all(step.ok is not False for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "ok": self.ok,
            "complete": not self.stopped,
            "stopped": self.stopped,
            "quick": self.quick,
            "made_with": self.made_with,
            "steps": [asdict(step) for step in self.steps],
        }


def made_with(stored: StoredModel, ops: str, expert_memory: str) -> dict[str, Any]:
    """Versions, machine and model."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = mx.device_info() if mx.metal.is_available() else {}
    config = stored.config
    return {
        "dsv4-mlx": __version__,
        "mlx": version("mlx"),
        "python": platform.python_version(),
        "machine": description(),
        "memory": int(device.get("memory_size") or memory),
        "ops": ops,
        "expert_memory": expert_memory,
        "recipe": stored.manifest.recipe,
        "checkpoint": config.checkpoint,
        "identity": stored.manifest.source.get("identity"),
        "layers": config.layers,
        "experts": config.experts,
        "bytes": sum(stored.manifest.files.values()),
    }


def wrong(steps: Sequence[AcceptanceStep]) -> list[str]:
    """Names of the steps that found something."""
    return [step.name for step in steps if step.ok is False]
