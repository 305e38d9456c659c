"""Everything that `dsv4-mlx doctor` says, as one value: what is here, what runs how, and what a person could
change, which is printed and never done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.machine import mlx_switches, wire_guard
from dsv4_mlx.machine.disks import free_bytes, purgeable
from dsv4_mlx.machine.facts import Machine, this_machine
from dsv4_mlx.machine.macs import find_mac, highest_gpu_limit, wirable
from dsv4_mlx.machine.measure import copy_bandwidth, read_speed
from dsv4_mlx.machine.units import size
from dsv4_mlx.ops.selftest.choose import judged, this_metal
from dsv4_mlx.ops.selftest.supervisor import Progress
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal, Verdict
from dsv4_mlx.planning.candidates import Candidate
from dsv4_mlx.planning.fit import Fit, MemoryBudget, budget_of_mac, fit, smallest
from dsv4_mlx.planning.speed import Prediction, Speeds, predict

_MIB = 1 << 20


def advice(
    machine: Machine, fits: Sequence[Fit], raised: Sequence[Fit], verdicts: Sequence[Verdict], free: int
) -> list[str]:
    """Sentences. `raised`: the fits with the GPU's limit as high as it may go."""
    found = []
    pairs = zip(raised, fits, strict=True)
    better = [
        f"{new.name} {new.placement}" for new, old in pairs if new.placement == "resident" != old.placement
    ]
    if machine.gpu_limit is not None and better:
        limit = highest_gpu_limit(machine.memory) // _MIB
        found.append(
            f"let the GPU use more memory, until the next restart: sudo sysctl iogpu.wired_limit_mb={limit} "
            f"(then {', '.join(better)})"
        )
    if all(f.placement == "too large" for f in fits):
        least = smallest(fits)
        found.append(
            f"V4-Flash does not run here: recipe {least.name} needs {size(least.need)} with one "
            "expert per layer in memory; `dsv4-mlx demo` shows everything on a small model"
        )
    elif not any(f.placement == "resident" for f in fits):
        found.append("experts will be read from the disk when needed: keep the model on the internal SSD")
    least_bytes = min(f.bytes for f in fits)
    if free < least_bytes:
        found.append(
            f"make room for the model: its smallest recipe takes {size(least_bytes)} of disk, "
            f"{size(free)} are free{purgeable()}"
        )
    bad = [v for v in verdicts if not v.works]
    if bad:
        names = ", ".join(v.kernel for v in bad)
        found.append(
            f"report the kernels that failed ({names}) with the output of `dsv4-mlx doctor --json`; "
            "until then their references run"
        )
    return found


@dataclass(frozen=True)
class Wired:
    """`most`: bytes of a model that are wired at most, `last`: that were wired last, None if none were;
    `refused`: whether the next start goes unwired, because the last wiring ended badly."""

    most: int
    last: int | None
    refused: bool


def wired(machine: Machine) -> Wired | None:
    """None where nothing can be wired: no Metal. Changes nothing."""
    if machine.gpu_limit is None:
        return None
    guard = wire_guard.this_process()
    last = guard.last()
    return Wired(
        wirable(machine.memory, machine.gpu_limit),
        None if last is None else last["bytes"],
        bool(guard.left()),
    )


NO_METAL = (
    "no Metal here: no kernel was run, and nothing is known of the GPU, its memory limit or its speed. "
    "The references compute on the CPU, right but slow."
)


@dataclass(frozen=True)
class Examination:
    """`copy` and `read` in bytes per second; None where it could not be measured. `tf32`: MLX's switch.
    `published`: what Apple says of the memory's speed, None for a machine that is not in the table of Macs.
    `limit`: bytes that a model may use, `taken`: that other programs hold of them now. `predictions`: of the
    fits. `unchecked`: sentences."""

    machine: Machine
    tf32: str
    wired: Wired | None
    copy: float
    published: float | None
    folder: str
    free: int
    read: float | None
    kernels: tuple[Verdict, ...]
    fits: tuple[Fit, ...]
    predictions: tuple[Prediction | None, ...]
    limit: int
    taken: int
    unchecked: tuple[str, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the units of their names."""
        return {
            "machine": asdict(self.machine),
            "switches": {mlx_switches.VARIABLE: self.tf32},
            "memory": {
                "limit": self.limit,
                "held_by_other_programs": self.taken,
                "copy_bytes_per_second": self.copy,
                "published_bytes_per_second": self.published,
                "wired": None if self.wired is None else asdict(self.wired),
            },
            "disk": {"folder": self.folder, "free": self.free, "read_bytes_per_second": self.read},
            "kernels": [asdict(v) | {"works": v.works} for v in self.kernels],
            "models": [
                fit.to_json() | {"prediction": None if found is None else asdict(found)}
                for fit, found in zip(self.fits, self.predictions, strict=True)
            ],
            "not_checked": list(self.unchecked),
            "advice": list(self.advice),
        }


def examine(
    folder: Path,
    verdicts: Path,
    models: Sequence[Candidate],
    config: ModelConfig,
    budget: MemoryBudget,
    *,
    metal: Metal | None = None,
    machine: Machine | None = None,
    kernels: Sequence[str] | None = None,
    limits: CheckLimits | None = None,
    measured: int = 256 << 20,
    progress: Progress | None = None,
) -> Examination:
    """Look at this machine. `folder`: where models are kept; `budget`: what a model may use here.

    Every kernel is checked anew, and what is found is remembered in `verdicts`. `metal`, `machine` and
    `kernels` are this machine's own unless a test says otherwise. `measured`: bytes copied, and read.
    """
    metal, machine = metal or this_metal(), machine or this_machine()
    unchecked = []
    found: list[Verdict] = []
    if metal is None:
        unchecked.append(NO_METAL)
    else:
        found = judged(verdicts, metal, kernels, limits or CheckLimits(), progress, again=True)
    try:
        free = free_bytes(folder)
        read = read_speed(folder, measured)
    except OSError as error:
        free, read = 0, None
        unchecked.append(f"the disk's read speed: {error.strerror} ({folder})")
    else:
        if read is None:
            unchecked.append(
                "the disk's read speed: too little room, or reads that don't pass the system's cache"
            )
    higher = budget_of_mac(machine.memory, working_set=highest_gpu_limit(machine.memory))
    fits, raised = ([fit(m.stored, config, one) for m in models] for one in (budget, higher))
    speeds = Speeds(copy_bandwidth(measured), read)
    mac = find_mac(machine.chip, machine.memory)
    return Examination(
        machine=machine,
        tf32=mlx_switches.setting(),
        wired=wired(machine),
        copy=speeds.memory or 0.0,
        published=None if mac is None else mac.bandwidth,
        folder=str(folder),
        free=free,
        read=read,
        kernels=tuple(found),
        fits=tuple(fits),
        predictions=tuple(
            predict(model, found, config, speeds, budget.element, budget.page_cache)
            for model, found in zip(models, fits, strict=True)
        ),
        limit=budget.limit,
        taken=budget.taken,
        unchecked=tuple(unchecked),
        advice=tuple(advice(machine, fits, raised, found, free)),
    )
