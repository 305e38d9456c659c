"""What a person could change, from what was found. Printed, never done."""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_mlx.machine.facts import Machine
from dsv4_mlx.ops.selftest.verdicts import Verdict
from dsv4_mlx.planning.fit import Fit, smallest

_MIB = 1 << 20
_FOR_THE_SYSTEM = 8 << 30  # memory that macOS and other programs need beside the model


def highest_gpu_limit(memory: int) -> int:
    """The most memory a GPU may keep while the Mac stays usable: a sixteenth, 8 GiB at least, is left."""
    return memory - max(_FOR_THE_SYSTEM, memory // 16)


def advice(
    machine: Machine, fits: Sequence[Fit], raised: Sequence[Fit], verdicts: Sequence[Verdict], free: int
) -> list[str]:
    """Sentences. `raised`: the fits with the GPU's limit as high as it may go."""
    found = []
    if machine.gpu_limit is not None and any(
        _rank(after) > _rank(before) for before, after in zip(fits, raised, strict=True)
    ):
        limit = highest_gpu_limit(machine.memory) // _MIB
        better = [f"{f.name} {f.how}" for f, b in zip(raised, fits, strict=True) if _rank(f) > _rank(b)]
        found.append(
            f"let the GPU use more memory, until the next restart: sudo sysctl iogpu.wired_limit_mb={limit} "
            f"(then {', '.join(better)})"
        )
    if all(f.how == "too large" for f in fits):
        least = smallest(fits)
        found.append(
            f"V4-Flash does not run here: recipe {least.name} needs {least.need / 1e9:.0f} GB with one "
            "expert per layer in memory; `dsv4-mlx demo` shows everything on a small model"
        )
    elif not any(f.how == "resident" for f in fits):
        found.append("experts will be read from the disk when needed: keep the model on the internal SSD")
    least_bytes = min(f.bytes for f in fits)
    if free < least_bytes:
        found.append(
            f"make room for the model: its smallest recipe takes {least_bytes / 1e9:.0f} GB of disk, "
            f"{free / 1e9:.0f} GB are free"
        )
    bad = [v for v in verdicts if not v.works]
    if bad:
        names = ", ".join(v.kernel for v in bad)
        found.append(
            f"report the kernels that failed ({names}) with the output of `dsv4-mlx doctor --json`; "
            "until then their references run"
        )
    return found


def _rank(fit: Fit) -> tuple[int, int]:
    return {"too large": 0, "paged": 1, "resident": 2}[fit.how], fit.slots + fit.context
