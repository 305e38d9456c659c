"""Keeps an open model's memory wired: a Mac would else page it, or prepare it anew for every command."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import mlx.core as mx

from dsv4_mlx.errors import Dsv4Warning
from dsv4_mlx.machine import mlx_switches, wire_guard

SMALL = 48 << 30  # bytes: Macs below were reported to freeze unless a third of their memory stays unwired
_SLOWER = "memory is not wired, which may be many times slower"


def most(memory: int, working_set: int) -> int:
    """Bytes that may be wired: the GPU's working set, 85% of the memory, of a small machine's 65%."""
    return min(working_set, memory * (65 if memory < SMALL else 85) // 100)


def prepare(mode: Literal["auto", "off"]) -> Wiring | None:
    """What will wire a model that is about to be opened; None where nothing will: off, refused, or no Metal.

    Warns, once in a process, of what is not as it should be.
    """
    if not mx.metal.is_available():
        return None
    mlx_switches.warn_if_late()
    if mode == "off":
        return None
    try:
        guard = wire_guard.this_process()
    except RuntimeError:
        _warn(f"{_SLOWER}: there is no home folder to note in that it began")
        return None
    refusal = guard.refusal()
    if refusal is not None:
        _warn(f"{_SLOWER}: {refusal}")
        return None
    return Wiring(guard)


class Wiring:
    """For one model."""

    def __init__(self, guard: wire_guard.Guard) -> None:
        self._guard, self._failed = guard, False

    def set(self) -> None:
        """Wire what is in memory now. To be called once for a layout of banks, never for an answer: it moves
        every buffer in or out, and macOS was seen to panic where that was done again and again."""
        if self._failed:
            return
        device: dict[str, Any] = mx.device_info()
        bound = most(int(device["memory_size"]), int(device["max_recommended_working_set_size"]))
        size = min(mx.get_active_memory(), bound)
        try:
            self._guard.begin(size)
            mx.set_wired_limit(size)
        except (OSError, RuntimeError, ValueError) as error:
            self._guard.clear()
            self._failed = True
            _warn(f"{_SLOWER}: {error}")


def _warn(message: str) -> None:
    warnings.warn(message, Dsv4Warning, stacklevel=1)  # one place: the same text is shown once
