"""Train the demo model: `python -m bench.demo_model.train --out RUN --minutes 60`; run again to continue.

Two processes (`--workers 2`), one BLAS thread each, average their gradients through shared memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import random
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from bench.demo_model.batches import make
from bench.demo_model.config import demo_config, model_config
from bench.demo_model.dialogue import Renderer
from bench.demo_model.loss import Batch, gradient
from bench.demo_model.models import read_official
from bench.demo_model.optim import Optimiser
from bench.demo_model.schedule import Plan, choose, plan_at
from bench.demo_model.tasks import STAGES
from bench.demo_model.tokenizer import build
from bench.demo_model.weights import Parameters, as_stored, from_official, initial, load_arrays

SAVE_EVERY = 120.0  # seconds
EXTRAS = 4  # numbers averaged with the gradients


class Meter:
    """Running figures by kind: loss, tokens right, whole answers right."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = defaultdict(dict)

    def add(self, kind: str, **figures: float) -> None:
        for name, value in figures.items():
            old = self.values[kind].get(name)
            self.values[kind][name] = value if old is None else 0.9 * old + 0.1 * value


def measure(batch: Batch, report: dict[str, Any]) -> dict[str, float]:
    right = np.array(report["top"]) == batch.labels
    whole = np.ones(batch.exact.max() + 1, bool)
    np.logical_and.at(whole, batch.exact, right)
    figures = {"loss": report["loss"].item(), "token": float(right.mean()), "whole": float(whole.mean())}
    for name in ("guide", "index", "drafted"):
        if name in report:
            figures[name] = report[name].item()
    return figures


class Shared:
    """One float32 vector per worker in shared memory; `average` leaves the mean in every worker."""

    def __init__(self, name: str | None, size: int, workers: int, rank: int, barrier: Any) -> None:
        self.memory = SharedMemory(name=name, create=name is None, size=4 * size * workers)
        self.all = np.ndarray((workers, size), np.float32, buffer=self.memory.buf)
        self.rank, self.barrier = rank, barrier

    def average(self, values: Parameters) -> Parameters:
        flat = self.all[self.rank]
        at = 0
        for value in values.values():
            flat[at : at + value.size] = np.asarray(value).reshape(-1)
            at += value.size
        self.barrier.wait()
        mean = self.all.mean(axis=0)
        self.barrier.wait()
        out, at = {}, 0
        for name, value in values.items():
            out[name] = mx.array(mean[at : at + value.size].reshape(value.shape))
            at += value.size
        return out


def run(rank: int, options: argparse.Namespace, shared_name: str | None, barrier: Any) -> None:
    """One worker. Every worker applies the same update to the same weights; rank 0 saves and logs."""
    config = model_config()
    parameters, optimiser, progress = load(options, config)
    shared = None
    if options.workers > 1:
        size = sum(v.size for v in parameters.values()) + EXTRAS
        shared = Shared(shared_name, size, options.workers, rank, barrier)
    renderer = Renderer(options.out)
    meter = Meter()
    started = saved = time.monotonic()
    elapsed_before = progress["seconds"]
    while True:
        seconds = elapsed_before + time.monotonic() - started
        # What a worker decides on must be the same in all: the clock is averaged with the gradients.
        plan = plan_at(progress["share"], optimiser.step)
        plan = replace(plan, rate=plan.rate * options.peak)
        r = random.Random(f"{options.seed}:{optimiser.step}:{rank}")
        kind = choose(plan, r)
        batch = make(kind, progress["stage"], options.tokens, r, renderer)
        seen = as_stored(config, parameters) if plan.stage.rounding else parameters
        grads, report = gradient(seen, config, batch, plan.stage)
        figures = measure(batch, report)
        needle = [figures["whole"], 1.0] if kind == "needle" else [0.0, 0.0]
        extras = mx.array([seconds, float(batch.tokens.size), *needle])
        balance(config, report, grads)
        if shared is not None:
            grads = shared.average({**grads, "": extras})
            extras = grads.pop("")
        apply(parameters, grads, optimiser, plan)
        mean_seconds, mean_tokens, found, asked = map(float, np.array(extras))
        progress["share"] = min(1.0, mean_seconds / (60 * options.minutes))
        progress["tokens"] += round(mean_tokens * options.workers)
        meter.add(kind, **figures)
        if rank == 0:
            progress["seconds"] = seconds
            if optimiser.step % 20 == 0:
                log(options.out, optimiser.step, progress, plan, meter)
        if progress["share"] >= 1.0 or (options.steps and optimiser.step >= options.steps):
            break
        advance(progress, found, asked)
        if rank == 0 and time.monotonic() - saved > SAVE_EVERY:
            save(options.out, parameters, optimiser, progress)
            saved = time.monotonic()
    if rank == 0:
        save(options.out, parameters, optimiser, progress)
        log(options.out, optimiser.step, progress, plan, meter)


def advance(progress: dict[str, Any], found: float, asked: float) -> None:
    """Longer needles once four in ten answers are right to the last digit."""
    if asked:
        progress["found"] = 0.93 * progress["found"] + 0.07 * found / asked
    late = progress["share"] > 0.68  # the last ones are wanted whatever happens
    if (progress["found"] > 0.4 or late) and progress["stage"] < len(STAGES) - 1:
        progress["stage"] += 1
        progress["found"] = 0.0


def balance(config: Any, report: dict[str, Any], grads: Parameters) -> None:
    """In place of a gradient a router's bias gets the sign of its experts' overload."""
    names = sorted(name for name in grads if name.endswith("gate.bias") and name.startswith("layers"))
    for name, ids in zip(names, report["loads"], strict=False):
        counts = np.bincount(np.asarray(ids).reshape(-1), minlength=config.experts)
        grads[name] = mx.array((counts / counts.mean() - 1).astype(np.float32))


def apply(parameters: Parameters, grads: Parameters, optimiser: Optimiser, plan: Plan) -> None:
    for name in parameters:
        if name.endswith("gate.bias"):
            parameters[name] = parameters[name] - 0.002 * plan.rate * mx.sign(grads[name])
    idle = ("indexer",) * (not plan.stage.index) + ("mtp.",) * (not plan.stage.mtp)
    optimiser.update(parameters, grads, 0.02 * plan.rate, 3e-3 * plan.rate, idle)


def load(options: argparse.Namespace, config: Any) -> tuple[Parameters, Optimiser, dict[str, Any]]:
    """The state of the run in `options.out`, or a new one: of random weights, or of a checkpoint's."""
    out, path = options.out, options.out / "state.safetensors"
    if not path.exists():
        parameters = initial(config, options.seed)
        if options.start is not None:
            parameters = from_official(config, read_official(options.start))
        fresh = {"share": 0.0, "stage": 0, "found": 0.0, "tokens": 0, "seconds": 0.0}
        return parameters, Optimiser.start(parameters), fresh
    arrays = load_arrays(path)
    parts: dict[str, Parameters] = {"p": {}, "m": {}, "v": {}}
    for name, value in arrays.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = value
    progress = json.loads((out / "progress.json").read_text())
    step = progress.pop("step")
    mx.eval(arrays)
    order = sorted(parts["p"])
    return {n: parts["p"][n] for n in order}, Optimiser(parts["m"], parts["v"], step), progress


def save(out: Path, parameters: Parameters, optimiser: Optimiser, progress: dict[str, Any]) -> None:
    arrays = {f"p/{n}": v for n, v in parameters.items()}
    arrays |= {f"m/{n}": v for n, v in optimiser.first.items()}
    arrays |= {f"v/{n}": v for n, v in optimiser.second.items()}
    mx.save_safetensors(str(out / "next.safetensors"), arrays)
    (out / "progress.json").write_text(json.dumps({**progress, "step": optimiser.step}))
    os.replace(out / "next.safetensors", out / "state.safetensors")


def log(out: Path, step: int, progress: dict[str, Any], plan: Plan, meter: Meter) -> None:
    head = {"step": step, "rate": round(plan.rate, 4), **{k: round(v, 4) for k, v in progress.items()}}
    kinds = {k: {n: round(v, 3) for n, v in f.items()} for k, f in sorted(meter.values.items())}
    line = json.dumps({**head, "kinds": kinds})
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder: new, or to continue")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the whole schedule")
    parser.add_argument("--steps", type=int, default=0, help="stop after this many updates")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a batch and worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=1.0, help="scales the learning rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="begin with an official checkpoint and its tokenizer")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "tokenizer.json").exists():
        if options.start is not None:
            shutil.copy(options.start / "tokenizer.json", options.out)
        else:
            build(options.out, demo_config()["vocab_size"])
    if options.workers == 1:
        run(0, options, None, None)
        return
    context = mp.get_context("spawn")
    barrier = context.Barrier(options.workers)
    size = 4 * (sum(v.size for v in initial(model_config(), 0).values()) + EXTRAS) * options.workers
    memory = SharedMemory(create=True, size=size)
    jobs = [
        context.Process(target=run, args=(rank, options, memory.name, barrier))
        for rank in range(options.workers)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    memory.close()
    memory.unlink()


if __name__ == "__main__":
    main()
