"""What a machine allows, and how fast this one is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.machine.limits import memory_limit
from dsv4_mlx.machine.measure import copy_bandwidth, read_speed
from dsv4_mlx.planning.speed import Speeds

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
