"""How much of the reading hides behind computing: a pair of layers of the true size, cold misses.

    python -m bench.paging.overlap FOLDER       FOLDER: a disk with 1.3 GB free; files are made and deleted

Each of the two layers is asked for six experts of which m must be read, m from 0 to 6. Measured alone:
reading those records (cold, both layers), and computing what needs no missing expert (shared expert and
hits). Then the run itself: its stall is the time in which nothing could be computed. Once with this
machine's arithmetic, which is slower than its disk, and once with none, as a fast GPU is nearer to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from bench.paging.reads import HIDDEN, RECORD, WIDTH, make_cold, write_records
from bench.paging.rejected import LruPolicy
from dsv4_mlx.cli.chart import Line, Panel, chart
from dsv4_mlx.machine.limits import description
from dsv4_mlx.model.tensors import ExpertProduct, Routed
from dsv4_mlx.ops.reference.expert_ffn import expert_ffn, swiglu
from dsv4_mlx.ops.types import Bank
from dsv4_mlx.paging.paged_experts import PagedExperts
from dsv4_mlx.paging.reading import DiskReader, Files, ReaderPool

EACH, EXPERTS, LIMIT = 6, 24, 10.0
REPEATS = 7


def product(chunk: Routed, gate_up: Bank, down: Bank) -> mx.array:
    routed = expert_ffn(chunk.x, chunk.ids, chunk.weights, gate_up, down, LIMIT)
    return routed if chunk.shared is None else routed + chunk.shared


class Shared:
    """The shared expert of a layer, MXFP8 as the release stores it."""

    def __init__(self) -> None:
        self._gate_up = mx.quantize(mx.random.normal((2 * WIDTH, HIDDEN)) / 64, mode="mxfp8")
        self._down = mx.quantize(mx.random.normal((HIDDEN, WIDTH)) / 64, mode="mxfp8")
        mx.eval(self._gate_up, self._down)

    def __call__(self, x: mx.array) -> mx.array:
        form: dict[str, Any] = {"transpose": True, "group_size": 32, "bits": 8, "mode": "mxfp8"}
        hidden = swiglu(mx.quantized_matmul(x, *self._gate_up, **form), LIMIT)
        return mx.quantized_matmul(hidden, *self._down, **form)


def no_product(chunk: Routed, gate_up: Bank, down: Bank) -> mx.array:
    return chunk.x.astype(mx.float32)


def no_shared(x: mx.array) -> mx.array:
    return x


class Pair:
    """Two layers over files of their own; experts 0 .. 5 are kept loaded, the others come and go."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.product: ExpertProduct = product
        self.paths = [folder / f"paging-overlap-{i}.safetensors" for i in range(2)]
        files = Files()
        self.pool = ReaderPool(DiskReader(files), threads)
        self.layers: list[PagedExperts] = []
        self.shared: list[Callable[[mx.array], mx.array]] = [Shared(), Shared()]
        for path in self.paths:
            records = write_records(path, EXPERTS)
            files.open(path, path.stat().st_size)
            policy = LruPolicy(EXPERTS)
            self.layers.append(
                PagedExperts(records, 2 * EACH, policy, self.pool, mx.float32, lambda *a: self.product(*a))
            )
        self.x = mx.random.normal((1, 1, HIDDEN))
        mx.eval(self.x)

    def prepare(self, misses: int, turn: int) -> list[list[int]]:
        """Experts to ask each layer for: hits that are loaded now, and `misses` cold ones that are not."""
        hits = list(range(EACH - misses))
        absent = [EACH + (turn * EACH + i) % (EXPERTS - EACH) for i in range(misses)]
        for path, layer in zip(self.paths, self.layers, strict=True):
            while any(layer.table.slot_of[e] >= 0 for e in absent):
                others = [e for e in range(EACH, EXPERTS) if e not in absent]
                layer.advise(others[:EACH])  # takes the place of what is loaded besides the hits
                layer.settle()
            layer.policy.step(range(EACH))
            layer.advise(range(EACH))
            layer.settle()
            assert not any(layer.table.ready(e) for e in absent)
            make_cold(path)
        return [hits + absent] * 2

    def run(self, experts: list[list[int]]) -> tuple[float, float]:
        """Seconds and stall of one token through both layers."""
        x, before = self.x, sum(layer.stats.stall for layer in self.layers)
        started = time.perf_counter()
        for layer, shared, ids in zip(self.layers, self.shared, experts, strict=True):
            wanted = mx.array(np.array(ids, np.uint32).reshape(1, 1, EACH))
            weights = mx.full((1, 1, EACH), 1 / EACH)
            (x,) = layer.routed([Routed(x, wanted, weights, shared(x), 1)])
            x = x / mx.sqrt(mx.mean(x * x))
        mx.eval(x)
        seconds = time.perf_counter() - started
        assert mx.isfinite(x).all().item()
        return seconds, sum(layer.stats.stall for layer in self.layers) - before

    def read_alone(self, experts: list[list[int]]) -> float:
        started = time.perf_counter()
        for layer, ids in zip(self.layers, experts, strict=True):
            layer.advise(ids)
            layer.settle()
        return time.perf_counter() - started

    def compute_alone(self, misses: int) -> float:
        """Shared expert and hits of both layers."""
        x, started = self.x, time.perf_counter()
        for layer, shared in zip(self.layers, self.shared, strict=True):
            beside = shared(x)
            hits = EACH - misses
            if hits:
                slots = mx.array([[[layer.table.slot_of[e] for e in range(hits)]]], mx.uint32)
                weights = mx.full((1, 1, hits), 1 / EACH)
                beside = self.product(Routed(x, slots, weights, beside, 1), *layer.bank.banks())
            mx.eval(beside)
        return time.perf_counter() - started


def measure(pair: Pair, misses: int) -> dict[str, float]:
    """Medians of REPEATS, in milliseconds."""
    found: dict[str, list[float]] = {"read": [], "compute": [], "run": [], "stall": [], "excess": []}
    for i in range(REPEATS):
        experts = pair.prepare(misses, 2 * i)
        read = pair.read_alone(experts)
        experts = pair.prepare(misses, 2 * i + 1)
        compute = pair.compute_alone(misses)
        run, stall = pair.run(experts)
        for name, value in (("read", read), ("compute", compute), ("run", run), ("stall", stall)):
            found[name].append(value * 1e3)
        found["excess"].append((stall - max(0.0, read - compute)) / read * 100 if misses else 0.0)
    return {"misses": misses, **{name: statistics.median(values) for name, values in found.items()}}


def plot(found: dict[str, list[dict[str, float]]]) -> str:
    panels = [panel(name, rows) for name, rows in found.items()]
    return chart(panels, f"measured on: {description()}")


def panel(title: str, found: list[dict[str, float]]) -> Panel:
    def line(name: str, label: str) -> Line:
        points = [(one["misses"], one[name]) for one in found]
        return Line(label, points, [(y, y) for _, y in points])

    allowed = [
        {**one, "allowed": max(0.0, one["read"] - one["compute"]) + 0.15 * one["read"]} for one in found
    ]
    limit = [(one["misses"], one["allowed"]) for one in allowed]
    lines = [line("read", "reading alone"), line("compute", "computing alone"), line("stall", "stall")]
    lines.append(Line("allowed stall", limit, [(y, y) for _, y in limit]))
    return Panel(f"Two layers, a token, {title}", "experts missing in each layer", "ms", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="without suffix: .json and .svg are written")
    options = parser.parse_args()
    pair = Pair(options.folder, options.threads)
    try:
        found = {"with arithmetic": [measure(pair, misses) for misses in range(EACH + 1)]}
        pair.product, pair.shared = no_product, [no_shared, no_shared]
        found["without"] = [measure(pair, misses) for misses in range(EACH + 1)]
    finally:
        for path in pair.paths:
            path.unlink(missing_ok=True)
    for name, rows in found.items():
        print(name)
        for one in rows:
            print(json.dumps({key: round(value, 1) for key, value in one.items()}))
    assert pair.layers[0].records.record_bytes == RECORD
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        options.out.with_suffix(".svg").write_text(plot(found))


if __name__ == "__main__":
    main()
