"""The forecast of a paged decode step against real paged decoding, on a stack of true-size layers.

    python -m bench.paging.timing FOLDER [--out bench/results/paging_timing.json]

FOLDER: a disk with 1.5 GB free; an official checkpoint of two true-size layers with 40 experts each is made
there and kept. Nothing is converted: experts are paged from the official folder. Every read is cold: the
record's pages are dropped just before; on a second, slow disk each record takes a second more. The forecast
gets the time of an expert's product, of the shared expert, of a token with all experts in memory, and of
reading 1, 3 and 6 records; how much is missing it works out from the recorded routing. All of these and the
paged runs are measured in turn, token by token, and medians are compared, because other programs share this
machine's processors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from bench.paging.record import Recorded
from bench.paging.replay import reads
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.machine.limits import description
from dsv4_mlx.model.tensors import Routed
from dsv4_mlx.paging.policy import DuelPolicy
from dsv4_mlx.paging.reading import RecordReader
from dsv4_mlx.paging.stats import total
from dsv4_mlx.planning.speed import Costs, DiskSpeed, Need, token_seconds
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint
from dsv4_mlx.weights.records import RecordMap

LAYERS, EXPERTS, EACH, HASHED = 2, 40, 6, 1
SLOTS = (8, 28)
DELAYS = {"disk": 0.0, "slow disk": 1.0}  # seconds more for a record: reading that can't be hidden
PROMPT, ROUNDS, THREADS = 2, 40, 2
CONTEXT = 512
BATCHES = (1, 3, 6)


class Cold:
    """Another reader's records, none of them from the page cache, each `delay` seconds later."""

    def __init__(self, reader: RecordReader, delay: float) -> None:
        self._reader, self._delay = reader, delay
        self._open: dict[Path, int] = {}

    def __call__(self, records: RecordMap, expert: int, into: memoryview) -> None:
        for part in records.ranges[expert]:
            path = records.files[part.file]
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY)
            os.posix_fadvise(self._open[path], part.offset, part.bytes, os.POSIX_FADV_DONTNEED)
        self._reader(records, expert, into)
        time.sleep(self._delay)


def stack(folder: Path) -> Path:
    """A checkpoint of two true-size layers: window with hash routing, and CSA; a small vocabulary."""
    if not (folder / "model.safetensors.index.json").exists():
        config = cut(release_config("flash", true_size=True), layers=LAYERS, experts=EXPERTS) | {
            "compress_ratios": [0, 4],
            "num_hash_layers": HASHED,
            "num_nextn_predict_layers": 0,
            "vocab_size": 1024,
        }
        write_checkpoint(folder, config)
    return folder


def opened(folder: Path, slots: int | None, delay: float = 0.0) -> Engine:
    memory = "100%" if slots is None else f"{slots}x"
    engine = Engine.open(folder, EngineOptions(CONTEXT, expert_memory=memory, expert_threads=THREADS))
    if engine.pager is not None:
        engine.pager.pool.reader = Cold(engine.pager.pool.reader, delay)
        for layer in engine.pager.layers.values():
            layer.predictor = None  # random weights say nothing about the next layer
    return engine


class Parts:
    """The costs of one layer's parts, measured on the resident model."""

    def __init__(self, engine: Engine) -> None:
        self._moe = engine.model.blocks[-1].ffn
        experts = self._moe.experts
        self._experts = experts._experts if isinstance(experts, Recorded) else experts
        self._x = mx.random.normal((1, 1, engine.config.hidden_size))
        self._zero = mx.zeros((1, 1, engine.config.hidden_size))
        mx.eval(self._x, self._zero)

    def experts(self, count: int) -> None:
        ids = mx.arange(count, dtype=mx.uint32)[None, None]
        weights = mx.ones((1, 1, count))
        mx.eval(self._experts.routed([Routed(self._x, ids, weights, self._zero, 1)]))

    def shared(self) -> None:
        moe = self._moe
        banks = moe.shared_gate_up.bank(), moe.shared_down.bank()
        mx.eval(moe.ops.shared_ffn(self._x, *banks, moe.limit))


def read(engine: Engine, count: int, rng: np.random.Generator) -> None:
    """`count` records of one layer, cold, as a layer asks for them. Nothing is loaded by it."""
    assert engine.pager is not None
    layer = list(engine.pager.layers.values())[-1]
    into = [memoryview(bytearray(layer.records.record_bytes)) for _ in range(count)]
    picked = layer.records.disk_order(rng.choice(EXPERTS, count, replace=False).tolist())
    pool = engine.pager.pool
    for future in [pool.submit(layer.records, e, v) for e, v in zip(picked, into, strict=True)]:
        future.result()


def measure(folder: Path, minutes: float) -> dict[str, Any]:
    resident = opened(folder, None)
    notes: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(LAYERS)]
    for block, into in zip(resident.model.blocks, notes, strict=True):
        block.ffn.experts = Recorded(block.ffn.experts, partial(_keep, into))
    engines = {f"{s}x, {name}": opened(folder, s, d) for s in SLOTS for name, d in DELAYS.items()}
    parts, rng = Parts(resident), np.random.default_rng(1)
    tokens = rng.integers(0, 1024, PROMPT + ROUNDS).tolist()
    sessions = {name: engine.session() for name, engine in {"resident": resident, **engines}.items()}
    for session in sessions.values():
        session.sync(tokens[:PROMPT])
    found: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        found.setdefault(name, []).append(time.perf_counter() - started)

    end = time.monotonic() + 60 * minutes
    for number, token in enumerate(tokens[PROMPT:]):
        if time.monotonic() > end:
            break
        print(f"token {number + 1}", file=sys.stderr, flush=True)
        for name, session in sessions.items():
            note(name, partial(session.advance, token))
        for count in (1, 6):
            note(f"{count} experts", partial(parts.experts, count))
        note("shared", parts.shared)
        for name in DELAYS:
            for count in BATCHES:
                note(f"{name}, {count}", partial(read, engines[f"{SLOTS[0]}x, {name}"], count, rng))
    counted = {}
    for name, engine in engines.items():
        assert engine.pager is not None
        counts = total(engine.pager.stats())
        counted[name] = counts.misses + counts.advised
        record = next(iter(engine.pager.layers.values())).records.read_bytes
    routing = [[sorted({int(e) for e in ids.ravel()}) for ids in layer] for layer in notes]
    return {"seconds": found, "reads": counted, "routing": routing, "record": record}


def _keep(into: list[npt.NDArray[np.int64]], ids: mx.array) -> None:
    into.append(np.array(ids[0]))


def forecast(found: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured seconds per token for each number of slots and each disk."""
    median = {name: statistics.median(values) for name, values in found["seconds"].items()}
    expert = (median["6 experts"] - median["1 experts"]) / 5
    before = median["resident"] / LAYERS - median["shared"] - EACH * expert
    costs = Costs(before, median["shared"], expert)
    rows = {}
    for slots in SLOTS:
        counts = [
            [len(one) for one in reads(steps, slots, DuelPolicy(EXPERTS), known=layer < HASHED)]
            for layer, steps in enumerate(found["routing"])
        ]
        tokens = [
            [
                Need(len(steps[t]) - counts[layer][t], counts[layer][t], known=layer < HASHED)
                for layer, steps in enumerate(found["routing"])
            ]
            for t in range(1, len(counts[0]))  # the first step is the prompt
        ]
        for name in DELAYS:
            disk, key = _disk(median, name, found["record"]), f"{slots}x, {name}"
            seconds = [token_seconds(costs, disk, found["record"], token) for token in tokens]
            predicted, measured = statistics.median(seconds), median[key]
            rows[key] = {
                "reads per token": sum(need.read for token in tokens for need in token) / len(tokens),
                "reads in all, predicted": sum(map(sum, counts)),
                "reads in all, counted": found["reads"][key],
                "disk": vars(disk),
                "predicted": predicted,
                "measured": measured,
                "error": predicted / measured - 1,
            }
    return {
        "machine": description(), "costs": vars(costs), "slots": rows, "medians": median,
        "seconds": found["seconds"],
    }  # fmt: skip


def _disk(median: dict[str, float], name: str, record: int) -> DiskSpeed:
    few, many = BATCHES[0], BATCHES[-1]
    speed = (many - few) * record / (median[f"{name}, {many}"] - median[f"{name}, {few}"])
    return DiskSpeed(max(0.0, median[f"{name}, {few}"] - few * record / speed), speed, speed)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    report = forecast(measure(stack(arguments.folder), arguments.minutes))
    text = json.dumps(_rounded(report), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
