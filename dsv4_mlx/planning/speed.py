"""Bounds on decode speed, from bytes. Predictions, never measurements.

A token reads `touched` bytes of weights from memory and the records of experts that are not there from the
disk: t >= touched / memory + missed / disk. Nothing else is counted, so a real run is slower; how much the
router repeats itself is not known before one.

What a machine allows, and how fast this one is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.machine.limits import memory_limit
from dsv4_mlx.machine.measure import copy_bandwidth, read_speed
from dsv4_mlx.planning.candidates import Candidate
from dsv4_mlx.planning.fit import Fit

MEASURED = 256 << 20  # bytes copied and read: some seconds


def default_gpu_limit(memory: int) -> int:
    """What macOS lets the GPU keep of so much memory unless told otherwise: two thirds up to 36 GiB, then
    three quarters. Observed on Macs by others, not documented by Apple."""
    return memory * 2 // 3 if memory <= 36 << 30 else memory * 3 // 4


def this_machine(speeds: Speeds, folder: Path) -> tuple[int, int, Speeds]:
    """Bytes a model may use here, bytes of a number in the state's rows, and the speeds that were not given,
    measured: of memory, and of the disk that holds `folder`, which exists."""
    disk = speeds.disk
    if disk is None:
        try:
            disk = read_speed(folder, MEASURED)
        except OSError:
            disk = None
    memory = speeds.memory or copy_bandwidth(MEASURED)
    return memory_limit(), 2 if mx.metal.is_available() else 4, replace(speeds, memory=memory, disk=disk)


# Share of a layer's experts in memory -> share of uses that find theirs there, in the paging simulator: a
# skewed trace with topics, the default policy (bench/results/paging_policies.json).
HITS = ((0.0, 0.0), (0.10, 0.648), (0.25, 0.844), (0.50, 0.948), (1.0, 1.0))


@dataclass(frozen=True)
class Speeds:
    """Bytes per second of memory, disk reads and network; None where nobody said or measured."""

    memory: float | None = None
    disk: float | None = None
    network: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Tokens per second at most: `low` if routing never repeats itself more than chance, `high` if it does
    as in the simulator. `missed`: bytes that are read from the disk per token, in both cases."""

    low: float | None
    high: float | None
    missed: tuple[int, int]


def predict(candidate: Candidate, fit: Fit, speeds: Speeds) -> Prediction | None:
    """None for a model that doesn't run."""
    if fit.how == "too large":
        return None
    experts = candidate.stored.experts
    share = fit.slots / experts.count
    used = experts.layers * experts.each * experts.record_bytes
    worst, best = (round(used * (1 - hits)) for hits in (share, max(share, simulated(share))))
    return Prediction(_rate(candidate, worst, speeds), _rate(candidate, best, speeds), (worst, best))


def simulated(share: float) -> float:
    """The simulator's hit rate, between its points by straight lines."""
    for (x0, y0), (x1, y1) in zip(HITS, HITS[1:], strict=False):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    return 1.0


def _rate(candidate: Candidate, missed: int, speeds: Speeds) -> float | None:
    if speeds.memory is None or (missed and speeds.disk is None):
        return None
    return 1 / (candidate.touched / speeds.memory + missed / (speeds.disk or 1))
