"""What is known of a kernel on a machine, and what that knowledge depends on.

Verdicts kept between runs, in a file that is replaced whole. A file that can't be read is no file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args

from dsv4_mlx.machine import mlx_switches
from dsv4_mlx.ops.kernels.launch import Launcher

Outcome = Literal["works", "differs", "fails", "crashes", "hangs", "slow", "not checked"]

_MEANING = {
    "differs": "gives other values than its reference",
    "fails": "does not compile or run",
    "crashes": "ended the process that tried it",
    "hangs": "did not finish",
    "slow": "is slower than its reference",
    "not checked": "could not be checked",
}


@dataclass(frozen=True)
class Verdict:
    """One kernel. Times are medians in seconds of one call of its largest case; `bytes` that call moves."""

    kernel: str
    outcome: Outcome
    detail: str = ""
    cases: int = 0
    seconds: float | None = None
    reference_seconds: float | None = None
    bytes: int | None = None

    @property
    def works(self) -> bool:
        return self.outcome == "works"

    def sentence(self) -> str:
        """For people, without the kernel's name."""
        meaning = _MEANING.get(self.outcome, self.outcome)
        return f"{meaning}: {self.detail}" if self.detail else meaning


@dataclass(frozen=True)
class CheckLimits:
    """When a kernel is given up: `seconds` in one case; slower than `times` its reference and `slack`."""

    seconds: float = 60.0
    times: float = 3.0
    slack: float = 0.001


@dataclass(frozen=True)
class Metal:
    """What runs kernels, and what verdicts depend on. `launcher` is "module:name", for a child to import."""

    launcher: str
    system: str
    chip: str
    mlx: str

    def launch(self) -> Launcher:
        found: Launcher = resolve(self.launcher)
        return found

    def key(self) -> str:
        """Changes with the version of MLX, the system, the chip, the kernels' sources and the precision of
        the references' products."""
        text = "\0".join(
            (self.launcher, self.system, self.chip, self.mlx, mlx_switches.setting(), _sources())
        )
        return hashlib.sha256(text.encode()).hexdigest()


def resolve(spec: str) -> Any:
    """ "module:name" -> the value."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def _sources() -> str:
    """Digest of everything that a kernel's behaviour is written in: sources, wrappers and cases."""
    digest = hashlib.sha256()
    for folder, suffixes in (("dsv4_mlx.metal", (".metal", ".h")), ("dsv4_mlx.ops.kernels", (".py",))):
        for name, text in sorted(_texts(files(folder), suffixes)):
            digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def _texts(folder: Traversable, suffixes: tuple[str, ...], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _texts(entry, suffixes, f"{prefix}{entry.name}/")
        elif entry.name.endswith(suffixes):
            found.append((prefix + entry.name, entry.read_text("utf-8")))
    return found


FORMAT = 1


def known(file: Path, key: str) -> dict[str, Verdict]:
    """Kernel -> verdict that was stored under `key`."""
    found = {}
    for name, record in _read(file).items():
        with suppress(TypeError, KeyError):
            verdict = Verdict(**record["verdict"])
            if record["key"] == key and verdict.kernel == name and verdict.outcome in get_args(Outcome):
                found[name] = verdict
    return found


def remember(file: Path, key: str, verdicts: Sequence[Verdict]) -> None:
    """Store verdicts, but of what could not be checked. Failing to write loses only time."""
    records = _read(file)
    records |= {v.kernel: {"key": key, "verdict": asdict(v)} for v in verdicts if v.outcome != "not checked"}
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump({"format": FORMAT, "kernels": records}, out, indent=1)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        kernels = stored["kernels"] if stored["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(kernels) if isinstance(kernels, dict) else {}
