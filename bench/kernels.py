"""Time every kernel at the sizes of the true model, on a Mac. `python bench/kernels.py --help`

The launches are those of one decode step, as the ledger traces them; their inputs are made up here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import mlx.core as mx  # noqa: E402

from bench.count.ours import trace_ours, true_config  # noqa: E402
from dsv4_mlx.config import ModelConfig  # noqa: E402
from dsv4_mlx.kernels.launch import Launch, Launcher, metal  # noqa: E402

MADE_BY_THE_WRAPPER = ("numbers", "scalars", "wanted", "limit")
INDICES = ("ids", "given", "picks")
COPIED = 1 << 30  # bytes of the copy that measures bandwidth


@dataclass(frozen=True)
class Timed:
    """One kind of launch: how many a decode step has, and what one costs."""

    kernel: str
    sizes: str  # of the inputs that are largest
    per_token: int
    bytes: int  # distinct, loaded and stored, by the wrapper's formula
    microseconds: float
    gigabytes_per_second: float
    share_of_copy: float


def distinct(config: ModelConfig, context: int) -> list[tuple[Launch, int]]:
    """The launches of the step after `context` tokens that completes a row of every kind; how often each."""
    step = trace_ours(config, context=context + 127, rows=1, kernels=True)
    kinds: dict[object, list[Launch]] = {}
    for launch in step.launches.values():
        shapes = tuple((array.shape, array.dtype) for array in launch.inputs)
        kinds.setdefault((launch.kernel.name, launch.template, shapes), []).append(launch)
    return [(same[0], len(same)) for same in kinds.values()]


def filled(launch: Launch) -> Launch:
    """The launch with arrays in place of the trace's placeholders: of no meaning, but of legal values."""
    pairs = zip(launch.kernel.inputs, launch.inputs, strict=True)
    return replace(launch, inputs=tuple(_made(name, array) for name, array in pairs))


def _made(name: str, array: mx.array) -> mx.array:
    if name in MADE_BY_THE_WRAPPER:
        return array
    if name in INDICES and mx.issubdtype(array.dtype, mx.integer):
        row = mx.arange(array.shape[-1]).astype(array.dtype)
        return mx.contiguous(mx.broadcast_to(row, array.shape))
    if array.dtype == mx.uint8:  # exponents of scales near 1
        return mx.full(array.shape, 120, mx.uint8)
    if mx.issubdtype(array.dtype, mx.integer):
        return mx.random.randint(0, 1 << 30, array.shape).astype(array.dtype)
    if name.endswith("mask"):
        return mx.zeros(array.shape, array.dtype)
    return (mx.random.normal(array.shape) * 0.05).astype(array.dtype)


def seconds_of(work: Callable[[], list[mx.array]], repeats: int) -> float:
    """Best of `repeats` evaluations of `work`."""
    mx.eval(work())  # compiles
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(work())
        best = min(best, time.perf_counter() - start)
    return best


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy."""
    source = mx.zeros((COPIED // 4,), mx.float32)
    mx.eval(source)
    return 2 * COPIED / seconds_of(lambda: [source + 1.0], 5)


def times(
    config: ModelConfig,
    context: int,
    launcher: Launcher,
    bandwidth: float,
    at_once: int = 20,
    repeats: int = 5,
) -> Iterator[Timed]:
    """`at_once` launches are evaluated together, so that the wait for the device is not what is timed."""
    for placeholder, per_token in distinct(config, context):
        launch = filled(placeholder)
        mx.eval(launch.inputs)
        seconds = seconds_of(_work(launcher, launch, at_once), repeats) / at_once
        moved = sum(launch.loaded().values()) + sum(launch.stored().values())
        largest = sorted(launch.inputs, key=lambda array: -array.nbytes)[:2]
        yield Timed(
            launch.kernel.name,
            " ".join("x".join(map(str, array.shape)) for array in largest),
            per_token,
            moved,
            seconds * 1e6,
            moved / seconds / 1e9,
            moved / seconds / bandwidth,
        )


def _work(launcher: Launcher, launch: Launch, at_once: int) -> Callable[[], list[mx.array]]:
    return lambda: [output for _ in range(at_once) for output in launcher(launch)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/kernels.py", description=__doc__)
    parser.add_argument("--context", type=int, default=4096, help="tokens before the step (default 4096)")
    parser.add_argument("--json", action="store_true", help="figures as JSON lines")
    options = parser.parse_args(arguments)
    if not mx.metal.is_available():
        print("error: this machine has no Metal, so there is no time to measure", file=sys.stderr)
        return 2
    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e9:.0f} GB/s", file=sys.stderr)
    for row in times(true_config(), options.context, metal, bandwidth):
        if options.json:
            print(json.dumps(asdict(row)))
        else:
            speed = f"{row.gigabytes_per_second:6.0f} GB/s {row.share_of_copy:5.0%} of a copy"
            cost = f"{row.per_token:4} a token {row.microseconds:8.1f} us {row.bytes / 1e6:8.2f} MB"
            print(f"{row.kernel:26} {cost} {speed}  {row.sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
