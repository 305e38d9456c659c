"""Which ops a model runs with here: kernels that have shown their references' values, else references."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.machine.facts import gpu_cores
from dsv4_mlx.machine.support import verdicts_file
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.selftest import supervisor as parent
from dsv4_mlx.ops.selftest import verdicts as store
from dsv4_mlx.ops.selftest.model_shape import ModelShape
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal, Verdict
from dsv4_mlx.ops.table import REFERENCE, Ops, with_kernels

Mode = Literal["auto", "reference"]


@dataclass(frozen=True)
class Choice:
    """`message`: what a person should know about it, in one line; None where nothing was replaced."""

    ops: Ops
    verdicts: tuple[Verdict, ...] = ()
    message: str | None = None


def choose(
    mode: Mode,
    file: Path | None = None,
    *,
    model: Callable[[], tuple[ModelConfig, str, str]] | None = None,
    metal: Metal | None = None,
    kernels: Sequence[str] | None = None,
    limits: CheckLimits | None = None,
    progress: parent.Progress | None = None,
) -> Choice:
    """The ops for this machine. `file` keeps verdicts from run to run; None: the user's own.

    `model`: the config of the model that will run, the formats of its matrices and of its experts, asked for
    only where kernels are tried; None: V4-Flash. "reference" checks nothing. "auto" needs Metal, else it is
    the same. `metal` and `kernels` are this machine's and all there are, unless a test says otherwise.
    """
    metal = None if mode == "reference" else metal or this_metal()
    if metal is None:
        return Choice(REFERENCE)
    if model is not None:
        metal = replace(metal, shape=ModelShape.of(*model()))
    verdicts = judged(file or verdicts_file(), metal, kernels, limits or CheckLimits(), progress)
    bad = [v for v in verdicts if not v.works]
    without = {op.name for op in ALL} - {v.kernel for v in verdicts if v.works}
    return Choice(with_kernels(metal.launch(), without), tuple(verdicts), _message(bad, len(verdicts)))


def this_metal() -> Metal | None:
    """The Metal of this machine, to be tried for V4-Flash; None where there is none."""
    if not mx.metal.is_available():
        return None
    chip = str(mx.device_info().get("device_name", "unknown"))
    system = f"macOS {platform.mac_ver()[0]}"
    launcher = "dsv4_mlx.ops.kernels.launch:metal"
    return Metal(launcher, system, chip, version("mlx"), gpu_cores())


def judged(
    file: Path,
    metal: Metal,
    kernels: Sequence[str] | None,
    limits: CheckLimits,
    progress: parent.Progress | None = None,
    *,
    again: bool = False,
) -> list[Verdict]:
    """Verdicts of `kernels` in their order: stored ones, the others found now and stored. `again`: all now,
    and with the kernels' own cases.

    None: of all there are. Raises InputError for a damaged file.
    """
    names = [op.name for op in ALL] if kernels is None else list(kernels)
    key = metal.key()
    verdicts = store.known(file, key)
    missing = [name for name in names if again or name not in verdicts]
    if missing:
        found = parent.check(metal, missing, limits, progress, edges=again)
        store.remember(file, key, found)
        verdicts |= {v.kernel: v for v in found}
    return [verdicts[name] for name in names]


def _message(bad: Sequence[Verdict], total: int) -> str | None:
    if not bad:
        return None
    what = "; ".join(f"{v.kernel} {v.sentence()}" for v in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return (
        f"{len(bad)} of {total} Metal kernels replaced by their slower references on this machine: "
        f"{what}{more} (dsv4-mlx doctor checks them again)"
    )
