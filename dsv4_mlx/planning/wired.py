"""What `--wire auto` does here."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_mlx.engine.wiring import most
from dsv4_mlx.machine import wire_guard as mishaps
from dsv4_mlx.machine.facts import Machine


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
    guard = mishaps.this_process()
    last = guard.last()
    return Wired(
        most(machine.memory, machine.gpu_limit), None if last is None else last["bytes"], bool(guard.left())
    )
