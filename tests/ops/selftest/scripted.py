"""A Metal for machines without one: launches go to the emulator, and one kernel has a fault.

Named by `Metal.launcher` as "ops.selftest.scripted:FAULT"; the process that tries kernels imports it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.selftest.model_shape import ModelShape

FAULTY = "hc_post"  # the kernel that has the fault; the others are sound
SMALL = ModelShape(
    hidden=128, heads=8, head_dim=64, rope_dim=16, kv_block=16, q_rank=32, o_groups=2, o_rank=32, window=32,
    index_heads=8, index_dim=32, index_topk=16, experts=8, chosen=3, expert_width=64, chunk=20, seen=16,
)  # fmt: skip
_sound = Proven(check=False)


def sound(launch: Launch) -> Sequence[mx.array]:
    _sound.launches.clear()
    _sound.results.clear()
    return _sound(launch)


def _faulty(fault: Callable[[Launch], Sequence[mx.array]]) -> Callable[[Launch], Sequence[mx.array]]:
    def launch(asked: Launch) -> Sequence[mx.array]:
        return fault(asked) if asked.kernel.name.startswith(FAULTY) else sound(asked)

    return launch


@_faulty
def broken(launch: Launch) -> Sequence[mx.array]:
    raise RuntimeError(
        "[metal::Device] Unable to build metal library from source\nprogram_source:7: error: x"
    )


@_faulty
def wrong(launch: Launch) -> Sequence[mx.array]:
    """By a tenth."""
    return [out * 1.1 for out in sound(launch)]


@_faulty
def crashing(launch: Launch) -> Sequence[mx.array]:
    print("the GPU has gone", flush=True)  # to stdout, where reports go
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


@_faulty
def hanging(launch: Launch) -> Sequence[mx.array]:
    time.sleep(3600)
    return []


@_faulty
def slow(launch: Launch) -> Sequence[mx.array]:
    """It is when results are waited for that a device shows its time."""
    global _waiting
    mx.eval = _evaluated
    found = sound(launch)
    _waiting += 1
    return found


_waiting, _eval = 0, mx.eval


def _evaluated(*arrays: object) -> None:
    global _waiting
    time.sleep(0.02 * _waiting)
    _waiting = 0
    _eval(*arrays)


@_faulty
def crashing_once(launch: Launch) -> Sequence[mx.array]:
    """In the first of the processes that share a folder."""
    mark = Path(os.environ["SCRIPTED_FOLDER"]) / "crashed"
    if mark.exists():
        return sound(launch)
    mark.touch()
    return crashing(launch)


def absent() -> None:
    """No launcher: a process that can't even begin."""
    raise ImportError
