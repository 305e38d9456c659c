"""Everything that `dsv4-mlx doctor` says, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.machine import mlx_switches as tf32
from dsv4_mlx.machine.facts import Machine, this_machine
from dsv4_mlx.machine.measure import copy_bandwidth, free_bytes, read_speed
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.selftest.choose import judged
from dsv4_mlx.ops.selftest.supervisor import Progress
from dsv4_mlx.ops.selftest.verdicts import Limits, Metal, Verdict, this_metal
from dsv4_mlx.planning.advice import advice, highest_gpu_limit
from dsv4_mlx.planning.fit import Fit, Stored, fit
from dsv4_mlx.planning.wired import Wired, wired

NO_METAL = (
    "no Metal here: no kernel was run, and nothing is known of the GPU, its memory limit or its speed. "
    "The references compute on the CPU, right but slow."
)


@dataclass(frozen=True)
class Examination:
    """`copy` and `read` in bytes per second; None where it could not be measured. `tf32`: MLX's switch.
    `unchecked`: sentences."""

    machine: Machine
    tf32: str
    wired: Wired | None
    copy: float
    folder: str
    free: int
    read: float | None
    kernels: tuple[Verdict, ...]
    fits: tuple[Fit, ...]
    limit: int
    unchecked: tuple[str, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the units of their names."""
        return {
            "machine": asdict(self.machine),
            "switches": {tf32.VARIABLE: self.tf32},
            "memory": {
                "limit": self.limit,
                "copy_bytes_per_second": self.copy,
                "wired": None if self.wired is None else asdict(self.wired),
            },
            "disk": {"folder": self.folder, "free": self.free, "read_bytes_per_second": self.read},
            "kernels": [asdict(v) | {"works": v.works} for v in self.kernels],
            "models": [asdict(f) for f in self.fits],
            "not_checked": list(self.unchecked),
            "advice": list(self.advice),
        }


def examine(
    folder: Path,
    verdicts: Path,
    models: Sequence[Stored],
    config: ModelConfig,
    limit: int,
    *,
    metal: Metal | None = None,
    machine: Machine | None = None,
    kernels: Sequence[str] | None = None,
    limits: Limits | None = None,
    measured: int = 256 << 20,
    progress: Progress | None = None,
) -> Examination:
    """Look at this machine. `folder`: where models are kept; `limit`: bytes a model may use here.

    Every kernel is checked anew, and what is found is remembered in `verdicts`. `metal`, `machine` and
    `kernels` are this machine's own unless a test says otherwise. `measured`: bytes copied, and read.
    """
    metal, machine = metal or this_metal(), machine or this_machine()
    unchecked = []
    names = [op.name for op in ALL] if kernels is None else list(kernels)
    found: list[Verdict] = []
    if metal is None:
        unchecked.append(NO_METAL)
    else:
        found = judged(verdicts, metal, names, limits or Limits(), progress, again=True)
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
    element = 2 if machine.metal else 4
    fits = [fit(model, config, limit, element) for model in models]
    raised = [fit(model, config, highest_gpu_limit(machine.memory), element) for model in models]
    return Examination(
        machine=machine,
        tf32=tf32.setting(),
        wired=wired(machine),
        copy=copy_bandwidth(measured),
        folder=str(folder),
        free=free,
        read=read,
        kernels=tuple(found),
        fits=tuple(fits),
        limit=limit,
        unchecked=tuple(unchecked),
        advice=tuple(advice(machine, fits, raised, found, free)),
    )
