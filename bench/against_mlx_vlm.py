"""Our reference path against mlx-vlm's deepseek_v4 on the CPU: same weights and storage, float32 activations.

    python bench/against_mlx_vlm.py [--json FILE]        needs the optional group `peer`

A made-up checkpoint in the official layout is loaded by both: mxfp8 dense, mxfp4 experts. Runs alternate and
every figure is a median. The time of matrix products is that of the products of a traced step, run alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from bench.against.engines import Ours, Theirs  # noqa: E402
from bench.against.products import products  # noqa: E402
from dsv4_mlx.synthetic import write_checkpoint  # noqa: E402
from dsv4_mlx.synthetic.configs import release_config  # noqa: E402

SHAPE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 12, "compress_ratios": [0, 0] + [4, 128] * 5 + [0],
    "n_routed_experts": 32, "num_attention_heads": 8, "head_dim": 512, "q_lora_rank": 128, "o_groups": 2,
    "o_lora_rank": 128, "moe_intermediate_size": 256, "index_n_heads": 16, "vocab_size": 1024,
}  # fmt: skip
Engine = Ours | Theirs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/against_mlx_vlm.py")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement; default 5")
    parser.add_argument("--prompt", type=int, default=16, help="tokens prefilled; default 16")
    parser.add_argument("--tokens", type=int, default=4, help="tokens decoded per round; default 4")
    parser.add_argument("--checked", type=int, default=16, help="tokens compared with the oracle; default 16")
    options = parser.parse_args()
    config = release_config("flash", true_size=True) | SHAPE
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), config, seed=0)
        engines: dict[str, Engine] = {"ours": Ours(Path(folder)), "mlx_vlm": Theirs(Path(folder), config)}
        result = compare(engines, options) | {
            "error": errors(engines, Path(folder), config, options.checked),
            "config": SHAPE, "machine": machine(), "command": " ".join(["python", *sys.argv]),
        }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def compare(engines: dict[str, Engine], options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per step of both, in all and in products, and what follows from them."""
    prompt = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], options.prompt)
    totals: dict[str, dict[str, list[float]]] = {n: {"prefill": [], "decode": []} for n in engines}
    for turn in range(options.rounds + 1):  # the first warms up and is not counted
        for name, engine in engines.items():
            prefill = timed(lambda engine=engine: engine.start(prompt))  # type: ignore[misc]
            steps = [timed(lambda engine=engine, t=t: engine.step(t)) for t in range(options.tokens)]  # type: ignore[misc]
            print(
                f"round {turn} {name}: prefill {prefill:.2f} s, decode {median(steps):.3f} s", file=sys.stderr
            )
            if turn:
                totals[name]["prefill"].append(prefill)
                totals[name]["decode"].append(median(steps))
    result: dict[str, Any] = {"clock": "CPU seconds of the process, all threads", "seconds": {}}
    work = {
        name: {"prefill": products(engine, 0, options.prompt), "decode": products(engine, options.prompt, 1)}
        for name, engine in engines.items()
    }
    inside: dict[str, dict[str, list[float]]] = {n: {"prefill": [], "decode": []} for n in engines}
    for _ in range(options.rounds):
        for name in engines:
            for step, run in work[name].items():
                repeats = options.tokens if step == "decode" else 1  # as often as the steps themselves
                inside[name][step].append(median(timed(run) for _ in range(repeats)))
    for name in engines:
        result["seconds"][name] = {
            step: split(median(totals[name][step]), median(inside[name][step])) for step in totals[name]
        }
    ours, theirs = result["seconds"]["ours"], result["seconds"]["mlx_vlm"]
    for step, tokens in (("prefill", options.prompt), ("decode", 1)):
        result[step] = {
            "tokens_per_cpu_second": {
                "ours": tokens / ours[step]["all"],
                "mlx_vlm": tokens / theirs[step]["all"],
            },
            "speed_ratio": theirs[step]["all"] / ours[step]["all"],
            "outside_products_ratio": ours[step]["outside"] / theirs[step]["outside"],
        }
    return result


def split(whole: float, products: float) -> dict[str, float]:
    return {"all": whole, "products": products, "outside": whole - products}


def timed(run: Callable[[], object]) -> float:
    """CPU seconds of all threads of this process: what a neighbour on the machine takes is not in them."""
    start = time.process_time()
    run()
    return time.process_time() - start


def errors(engines: dict[str, Engine], folder: Path, config: dict[str, Any], count: int) -> dict[str, Any]:
    """Largest and median error of decoded logits against numpy in float32, in standard deviations of it."""
    from oracle.numpy_model import NumpyModel
    from oracle.official import OfficialCheckpoint

    tokens = np.random.default_rng(1).integers(0, config["vocab_size"], count)
    expected = NumpyModel(config, OfficialCheckpoint(folder), "exact").logits(tokens)
    result: dict[str, Any] = {"tokens": count, "standard_deviation": float(expected.std())}
    for name, engine in engines.items():
        rows = [engine.start(tokens[:1]), *(engine.step(int(t)) for t in tokens[1:])]
        error = np.abs(np.stack(rows) - expected) / expected.std()
        result[name] = {"largest": float(error.max()), "median": float(np.median(error))}
    return result


def machine() -> dict[str, str]:
    from importlib.metadata import version

    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ": unknown")
    return {
        "what": f"{cpu.split(':')[1].strip()}, {platform.system()} {platform.machine()}, shared: not a Mac",
        "device": str(mx.default_device()), "python": platform.python_version(),
        "mlx": version("mlx"), "mlx_vlm": version("mlx-vlm"),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
