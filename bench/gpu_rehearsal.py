"""What MLX does on a GPU that is no Mac's, in ten minutes at most: `python -m bench.gpu_rehearsal --help`

For a Linux machine with an NVIDIA GPU and MLX's CUDA wheel (`pip install "mlx[cuda12]"`). No kernel of ours
runs there: what is tried is what a Mac shares with it. Float32 products with and without TF32; a layer of
each kind by the references, in float32 and bfloat16, against the CPU's float32; one at the model's true size;
threads; MLX's memory calls; the model that ships with this package, asked.

Each step is a process of its own with its own time: one that fails or hangs is a line of the report. Where
there is no such GPU it says so and ends. `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.generate import answer
from dsv4_mlx.hub.models import build
from dsv4_mlx.machine.mlx_switches import VARIABLE
from dsv4_mlx.model.block import Block
from dsv4_mlx.model.chunk import ChunkPlanner
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.ops.table import EXACT, REFERENCE
from dsv4_mlx.planning.rehearsal import sample_config
from dsv4_mlx.synthetic import small_config, write_checkpoint
from dsv4_mlx.weights.load import StoredTensors, find_model
from dsv4_mlx.weights.stored import StoredModel

ROWS = 136  # of a chunk: the window is full, a group of 128 closed; then one token more
Figures = dict[str, Any]


def products(device: mx.Device, side: int = 1024) -> Figures:
    """How far a float32 product is off numpy's float64, relative to its largest value: one row, and many."""
    draw = np.random.default_rng(0)
    right = draw.standard_normal((side, side), np.float32)
    found = {}
    for rows in (1, side):
        left = draw.standard_normal((rows, side), np.float32)
        exact = left.astype(np.float64) @ right.astype(np.float64)
        with mx.stream(device):
            got = np.array(mx.array(left) @ mx.array(right))
        found[f"error of {rows} rows"] = float(np.abs(got - exact).max() / np.abs(exact).max())
    return found


def layers(device: mx.Device, config: dict[str, Any] | None = None, rows: int = ROWS) -> Figures:
    """Each layer of the small checkpoint, or of `config`: median error of a token, and seconds of a chunk of
    `rows` and a token, by dtype."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), small_config() if config is None else config)
        stored = find_model(Path(folder))
        for number in range(stored.config.layers):
            expected, _ = _layer(stored, number, mx.Device(mx.cpu), mx.float32, rows, 1)
            for dtype in (mx.float32, mx.bfloat16):
                got, seconds = _layer(stored, number, device, dtype, rows, 2)
                name = f"layer {number}, {str(dtype).removeprefix('mlx.core.')}"
                found[name] = {"error": _error(got, expected), "seconds": round(seconds, 3)}
    return found


def true_size(device: mx.Device) -> Figures:
    """One layer at V4-Flash's widths, with 16 of its 256 experts, and few rows: the CPU computes them too."""
    return layers(device, sample_config(), 24)


def _layer(
    stored: StoredModel, number: int, device: mx.Device, dtype: mx.Dtype, rows: int, runs: int
) -> tuple[np.ndarray[Any, Any], float]:
    """What it adds to made-up streams [1, rows + 1, C, D], by the references; seconds of the last run."""
    config = stored.config
    draw = np.random.default_rng(number)
    x = draw.standard_normal((1, rows + 1, config.streams, config.hidden_size), np.float32)
    tokens = draw.integers(0, config.vocab_size, (1, rows + 1))
    with mx.stream(device), closing(stored.arrays(lambda count: None)) as arrays:
        block = Block(
            config, number, f"layers.{number}", StoredTensors(stored, arrays, dtype), REFERENCE, EXACT
        )
        seconds = 0.0
        for _ in range(runs):
            state, parts, start = _state(config, number, dtype), [], time.perf_counter()
            for begin, end in ((0, rows), (rows, rows + 1)):
                plan = ChunkPlanner(config).plan(begin, end - begin)
                part, ids = mx.array(x[:, begin:end]), mx.array(tokens[:, begin:end], mx.int32)
                parts.append(block.added(part, ids, state, plan).astype(mx.float32))
                mx.eval(parts[-1], state.arrays())
            seconds = time.perf_counter() - start
        return np.concatenate([np.array(part) for part in parts], axis=1)[0], seconds


def _state(config: ModelConfig, number: int, dtype: mx.Dtype) -> LayerState:
    state = LayerState(config, config.kind(number), 1, dtype)
    for rows in (state.rows, state.index_rows):
        if rows is not None:
            rows.grow(ROWS // state.kind.ratio + 1)
    return state


def _error(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    off = np.sqrt(np.mean((found - expected) ** 2, axis=(1, 2)))
    return float(np.median(off / np.sqrt(np.mean(expected**2, axis=(1, 2)))))


def threads(device: mx.Device, count: int = 4) -> Figures:
    """The same products by threads at once, each on its own default stream: how many differ from alone."""
    right = np.random.default_rng(0).standard_normal((256, 256), np.float32)

    def product(seed: int) -> np.ndarray[Any, Any]:
        mx.set_default_device(device)
        x = mx.array(np.random.default_rng(seed).standard_normal((64, 256), np.float32))
        for _ in range(20):
            x = mx.tanh(x @ mx.array(right))
        return np.array(x)

    expected = [product(seed) for seed in range(count)]
    found: list[Any] = [None] * count

    def run(seed: int) -> None:
        try:
            found[seed] = product(seed)
        except Exception as error:  # what a stream of another thread raises is what is asked
            found[seed] = f"{type(error).__name__}: {error}"

    running = [threading.Thread(target=run, args=(seed,)) for seed in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    raised = [one for one in found if isinstance(one, str)]
    differ = sum(
        not np.array_equal(a, b) for a, b in zip(found, expected, strict=True) if not isinstance(a, str)
    )
    return {"threads": count, "differ": differ, "raised": raised}


def memory(device: mx.Device) -> Figures:
    """What MLX's memory calls say and do: an array's bytes are counted, kept when let go of, given back."""
    mx.set_default_device(device)
    found: Figures = {}
    for name, size in (
        ("set_cache_limit", 1 << 30),
        ("set_memory_limit", 8 << 30),
        ("set_wired_limit", 1 << 30),
    ):
        try:
            before = getattr(mx, name)(size)
            found[name] = f"was {before}"
            getattr(mx, name)(before)
        except Exception as error:  # what it raises is what is asked
            found[name] = f"{type(error).__name__}: {error}"
    before = mx.get_active_memory()
    x = mx.ones((1 << 24,), mx.float32)
    mx.eval(x)
    found["counted of 64 MiB"] = mx.get_active_memory() - before
    del x
    found["kept when let go"] = mx.get_cache_memory()
    mx.clear_cache()
    found["kept when cleared"] = mx.get_cache_memory()
    return found


def demo(device: mx.Device) -> Figures:
    """The shipped model converted, opened and asked, greedily."""
    mx.set_default_device(device)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.open(build(Path(folder)).model, EngineOptions())
        greedy = SamplingOptions(temperature=0.0)
        pieces = answer(engine, engine.session(), "What is the sliding window?", "off", greedy, max_tokens=40)
        start = time.perf_counter()
        said = "".join(piece.text for piece in pieces)
        return {"answer": said, "seconds": round(time.perf_counter() - start, 2)}


# Name -> what runs, MLX_ENABLE_TF32, seconds at most: 570 together.
STEPS: dict[str, tuple[Callable[[mx.Device], Figures], str, int]] = {
    "products, float32": (products, "0", 30),
    "products, TF32": (products, "1", 30),
    "memory calls": (memory, "0", 30),
    "threads": (threads, "0", 60),
    "demo": (demo, "0", 120),
    "layers": (layers, "0", 120),
    "a true-size layer": (true_size, "0", 180),
}


def run(name: str, device: str) -> Figures:
    """The step in a process of its own: its figures, or why there are none."""
    _, tf32, limit = STEPS[name]
    command = [sys.executable, "-m", "bench.gpu_rehearsal", "--device", device, "--step", name]
    try:
        done = subprocess.run(
            command, env=os.environ | {VARIABLE: tf32}, cwd=Path(__file__).parents[1],
            capture_output=True, text=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"it did not end within {limit} s"}
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]}
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def table(report: Figures) -> str:
    """A line for each figure of each step."""
    lines = [f"device: {report['device']}; MLX {report['mlx']}"]
    for name, figures in report["steps"].items():
        lines += [f"{name}: {what}: {value}" for what, value in figures.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_rehearsal", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--step", choices=STEPS, help="only this one, in this process")
    options = parser.parse_args(arguments)
    if options.device == "gpu" and not mx.cuda.is_available():
        print("no GPU here that MLX's CUDA backend can use: nothing is tried")
        return 0
    if options.step:
        print(json.dumps(STEPS[options.step][0](mx.Device(getattr(mx, options.device)))))
        return 0
    report: Figures = {"device": options.device, "mlx": mx.__version__, "steps": {}}
    for name in STEPS:
        report["steps"][name] = run(name, options.device)
        if options.out is not None:  # after every step: what is known stays, whatever comes
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
