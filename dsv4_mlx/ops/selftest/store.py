"""Verdicts kept between runs, in a file that is replaced whole. A file that can't be read is no file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from dsv4_mlx.ops.selftest.verdicts import Outcome, Verdict

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
