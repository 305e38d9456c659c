"""What is known of a kernel on a machine, and what that knowledge depends on.

Verdicts kept between runs, in a file that is replaced whole. A damaged file is an error that says so.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args

from dsv4_mlx import __version__
from dsv4_mlx.errors import InputError
from dsv4_mlx.machine import mlx_switches
from dsv4_mlx.ops.kernels.launch import Launcher
from dsv4_mlx.ops.selftest.model_shape import ModelShape

Outcome = Literal["works", "differs", "fails", "crashes", "hangs", "slow", "not checked"]

PASSING = frozenset({"fails", "crashes", "hangs", "slow"})
"""Outcomes that a busy machine can bring about: tried again at once, and stored for a day."""

_EXPIRY = 86_400.0  # seconds
_KEPT = 8  # models and machines whose verdicts the file holds

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
    """One kernel. Times are medians in seconds of one call of its largest timed case, in a queue of them;
    `bytes` that call moves."""

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
    times: float = 1.5
    slack: float = 30e-6


@dataclass(frozen=True)
class Metal:
    """What runs kernels, and what verdicts depend on. `launcher` is "module:name", for a child to import;
    `cores` the GPU's, 0 where they are not known; `shape` the model whose pipelines are tried."""

    launcher: str
    system: str
    chip: str
    mlx: str
    cores: int = 0
    shape: ModelShape = ModelShape()

    def launch(self) -> Launcher:
        found: Launcher = resolve(self.launcher)
        return found

    def key(self) -> str:
        """Changes with every field, MLX's switches, this package's version, and the sources of kernels,
        references and check."""
        parts = [asdict(self), mlx_switches.every_setting(), __version__, _sources()]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def resolve(spec: str) -> Any:
    """ "module:name" -> the value."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def _sources() -> str:
    """Digest of everything that a verdict comes from: kernels, wrappers, cases, references, the check."""
    digest = hashlib.sha256()
    for folder, suffixes in (("dsv4_mlx.metal", (".metal", ".h")), ("dsv4_mlx.ops", (".py",))):
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


FORMAT = 2


def known(file: Path, key: str, now: float | None = None) -> dict[str, Verdict]:
    """Kernel -> verdict that was stored under `key` and still holds at `now` (time.time()).

    Raises InputError for a damaged file.
    """
    now = time.time() if now is None else now
    found = {}
    for name, record in _read(file).get(key, {}).items():
        try:
            verdict, at = Verdict(**record["verdict"]), float(record["at"])
        except (TypeError, KeyError, ValueError):
            raise _damaged(file, f"its record of {name} is no verdict") from None
        if verdict.kernel != name or verdict.outcome not in get_args(Outcome):
            raise _damaged(file, f"its record of {name} says {verdict.outcome!r} of {verdict.kernel!r}")
        if verdict.outcome not in PASSING or 0 <= now - at < _EXPIRY:
            found[name] = verdict
    return found


def remember(file: Path, key: str, verdicts: Sequence[Verdict], now: float | None = None) -> None:
    """Store verdicts, but of what could not be checked. Failing to write loses only time.

    Raises InputError for a damaged file.
    """
    checks, at = _read(file), time.time() if now is None else now
    kept = checks.pop(key, {})
    kept |= {v.kernel: {"at": at, "verdict": asdict(v)} for v in verdicts if v.outcome != "not checked"}
    checks = dict([*checks.items(), (key, kept)][-_KEPT:])  # the latest last
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump({"format": FORMAT, "checks": checks}, out, indent=1)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Key -> kernel -> record; nothing of a file that is not there, or of another format's."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise _damaged(file, f"it is not JSON ({error})") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("format"), int):
        raise _damaged(file, 'it names no "format"')
    if stored["format"] != FORMAT:
        return {}
    checks = stored.get("checks")
    if not isinstance(checks, dict) or not all(isinstance(one, dict) for one in checks.values()):
        raise _damaged(file, 'its "checks" are no objects')
    return checks


def _damaged(file: Path, what: str) -> InputError:
    return InputError(
        f"the file of kernels' verdicts is damaged: {what}",
        where=file,
        next="delete it: the kernels are then checked again",
    )
