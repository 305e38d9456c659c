"""Our reference path against mlx-vlm's deepseek_v4 on the CPU: same weights and storage, float32 activations.

    python bench/against_mlx_vlm.py [--json FILE]        needs the optional group `peer`

A made-up checkpoint in the official layout is loaded by both: mxfp8 dense, mxfp4 experts. Steps alternate and
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
from statistics import median, quantiles
from typing import Any, NamedTuple

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
Step = tuple[str, Callable[[Engine], object]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/against_mlx_vlm.py")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement; default 5")
    parser.add_argument("--prompt", type=int, default=16, help="tokens prefilled; default 16")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded per round; default 16")
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
    """CPU seconds per step of both, in all and in products, and what follows from them.

    The processor changes its speed in phases of seconds, so everything that is compared is done within one:
    for each token one engine's step, the same step's products alone, then the other engine's, in an order
    that alternates. Ratios are taken pair by pair; a figure is the median over all pairs of all rounds.
    """
    prompt = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], options.prompt)
    work = {
        name: {"prefill": products(engine, 0, options.prompt), "decode": products(engine, options.prompt, 1)}
        for name, engine in engines.items()
    }
    taken: dict[str, list[dict[str, Seconds]]] = {"prefill": [], "decode": []}
    for turn in range(options.rounds + 1):  # the first warms up and is not counted
        steps: list[Step] = [("prefill", lambda e: e.start(prompt))]
        steps += [("decode", lambda e, t=t: e.step(t)) for t in range(options.tokens)]  # type: ignore[misc]
        for n, (kind, step) in enumerate(steps):
            order = list(engines) if (turn + n) % 2 else list(engines)[::-1]
            pair = {name: Seconds(timed(step, engines[name]), timed(work[name][kind])) for name in order}
            if turn:
                taken[kind].append(pair)
        print(f"round {turn} of {options.rounds}", file=sys.stderr)
    result: dict[str, Any] = {"clock": "CPU seconds of the process, all threads", "seconds": {}}
    for name in engines:
        result["seconds"][name] = {
            kind: spread([pair[name] for pair in pairs]) for kind, pairs in taken.items()
        }
    for kind, tokens in (("prefill", options.prompt), ("decode", 1)):
        pairs = [(pair["ours"], pair["mlx_vlm"]) for pair in taken[kind]]
        result[kind] = {
            "pairs": len(pairs),
            "tokens_per_cpu_second": {n: tokens / result["seconds"][n][kind]["all"] for n in engines},
            "speed_ratio": quartiles([theirs.all / ours.all for ours, theirs in pairs]),
            "products_ratio": quartiles([ours.products / theirs.products for ours, theirs in pairs]),
            "outside_ratio_of_medians": result["seconds"]["ours"][kind]["outside"]
            / result["seconds"]["mlx_vlm"][kind]["outside"],
        }
    return result


class Seconds(NamedTuple):
    """CPU seconds of one step, and of its products run alone right after it."""

    all: float
    products: float


def spread(steps: list[Seconds]) -> dict[str, float]:
    return {
        "all": median(s.all for s in steps),
        "products": median(s.products for s in steps),
        "outside": median(s.all - s.products for s in steps),
    }


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4)
    return {"median": middle, "quarter": low, "three_quarters": high}


def timed(run: Callable[..., object], *arguments: object) -> float:
    """CPU seconds of all threads of this process: what a neighbour on the machine takes is not in them."""
    start = time.process_time()
    run(*arguments)
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
