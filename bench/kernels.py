"""Each kernel at the true model's sizes: `python bench/kernels.py [KERNEL ...] [--step prefill]`.

Anywhere: how often a step launches it, what a launch reads and writes, and how long that takes at the least
at a given bandwidth (predicted). On a Mac also the measured time, on made-up numbers of the same shapes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.count.figures import starts  # noqa: E402
from bench.count.ours import trace_ours, true_config  # noqa: E402
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, metal  # noqa: E402

REPEATS = 50
# Inputs that are indices, and what they count: random ones would point beyond the arrays.
INDICES = {"ids": "codes", "indices": "compressed", "order": "order", "given": "logits"}
# Made by the wrapper for each call, so no placeholders: lengths, places, constants of the model.
OWN = ("uniforms", "constants", "wanted", "limit")


def launches(context: int, step: str) -> Counter[str]:
    """Names of a step's kernels with how often it launches them."""
    return Counter(launch.kernel.name for launch in _traced(context, step))


def examples(context: int, step: str) -> dict[str, Launch]:
    """Of each kernel the launch that moves most bytes."""
    found: dict[str, Launch] = {}
    for launch in _traced(context, step):
        name = launch.kernel.name
        if name not in found or moved(launch) > moved(found[name]):
            found[name] = launch
    return found


def _traced(context: int, step: str) -> list[Launch]:
    before, rows = starts(context)[step]
    return list(trace_ours(true_config(), context=before, rows=rows, kernels=True).launches.values())


def moved(launch: Launch) -> int:
    return sum(launch.loaded().values()) + sum(launch.stored().values())


def filled(launch: Launch) -> Launch:
    """The launch on numbers of its own: a traced one has placeholders."""
    rng = np.random.default_rng(0)
    named = dict(zip(launch.kernel.inputs, launch.inputs, strict=True))
    arrays = [_numbers(name, named, rng) for name in launch.kernel.inputs]
    return Launch(**{**vars(launch), "inputs": tuple(arrays)})


def _numbers(name: str, named: dict[str, mx.array], rng: np.random.Generator) -> mx.array:
    array = named[name]
    if name in OWN:
        return array
    size = math.prod(array.shape)
    if name == "tiles":
        first = np.arange(array.shape[0]) * 32
        tiles = np.stack([np.arange(array.shape[0]) % named["codes"].shape[0], first, first + 32], axis=1)
        pairs = math.prod(named["order"].shape)
        return mx.array(np.minimum(tiles, pairs).astype(np.uint32))
    if name in INDICES:
        counted = named[INDICES[name]]
        extent = counted.shape[{"indices": 1, "given": -1}.get(name, 0)]
        return mx.array((np.arange(size) % extent).reshape(array.shape).astype(np.uint32))
    if size <= 2 and mx.issubdtype(array.dtype, mx.integer):
        return array  # numbers(...), which are no placeholders
    if array.dtype == mx.uint8:
        return mx.full(array.shape, 120, mx.uint8)
    if mx.issubdtype(array.dtype, mx.integer):
        return mx.array(rng.integers(0, 2**32, array.shape, dtype=np.uint32)).astype(array.dtype)
    return mx.array(rng.standard_normal(size, np.float32).reshape(array.shape)).astype(array.dtype)


def seconds(launch: Launch, launcher: Launcher, repeats: int = REPEATS) -> float:
    """Of one launch, in a queue of them."""
    launch = filled(launch)
    mx.eval(launch.inputs, launcher(launch))
    begin = time.perf_counter()
    mx.eval([launcher(launch) for _ in range(repeats)])
    return (time.perf_counter() - begin) / repeats


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/kernels.py", description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="names as in the table; default: all")
    parser.add_argument("--step", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--bandwidth", type=float, default=800.0, help="GB/s, for the predicted time")
    options = parser.parse_args(arguments)
    counts, found = launches(options.context, options.step), examples(options.context, options.step)
    unknown = sorted(set(options.kernels) - set(found))
    if unknown:
        print(
            f"error: no kernel {', '.join(unknown)} in this step; it has {', '.join(sorted(found))}",
            file=sys.stderr,
        )
        return 2
    measured = mx.metal.is_available()
    columns = ("launches", 8), ("MB each", 9), ("us, predicted", 14), ("us, measured", 13), ("GB/s", 7)
    print(f"{'kernel':30s} " + " ".join(f"{title:>{width}s}" for title, width in columns))
    for name, launch in sorted(found.items(), key=lambda pair: -moved(pair[1]) * counts[pair[0]]):
        if options.kernels and name not in options.kernels:
            continue
        size = moved(launch)
        row = f"{name:30s} {counts[name]:8d} {size / 1e6:9.3f} {size / options.bandwidth / 1e3:14.1f}"
        if measured:
            taken = seconds(launch, metal)
            row += f" {taken * 1e6:13.1f} {size / taken / 1e9:7.0f}"
        else:
            row += f" {'-':>13s} {'-':>7s}"
        print(row, flush=True)
    if not measured:
        print("There is no Metal here: nothing was measured.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
