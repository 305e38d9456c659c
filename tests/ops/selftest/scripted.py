"""A Metal for machines without one: launches go to the emulator, and one kernel has a fault.

Named by `Metal.launcher` as "ops.selftest.scripted:FAULT"; the process that tries kernels imports it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import mlx.core as mx
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels.launch import Launch

FAULTY = "hc_post"  # the kernel that has the fault; the others are sound
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
    return [out + 1 for out in sound(launch)]


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
    time.sleep(0.3)
    return sound(launch)


def absent() -> None:
    """No launcher: a process that can't even begin."""
    raise ImportError
