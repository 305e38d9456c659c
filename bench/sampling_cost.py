"""What choosing a token costs beside the model, by options, with a vocabulary of 129,280.

    python bench/sampling_cost.py [--out bench/results/sampling_cost.json]

`draw` is the time from logits to an id that is read, its noise made before, as in an answer; `noise` is what
the host makes for the next token while the device computes. Medians of REPEATS rounds over all options.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from dsv4_mlx.engine.chooser import Chooser, GenerationLimits  # noqa: E402
from dsv4_mlx.engine.engine_options import SamplingOptions  # noqa: E402
from dsv4_mlx.engine.sampler import noise  # noqa: E402
from dsv4_mlx.tokenizer.template import Markers  # noqa: E402

VOCABULARY = 129_280
REPEATS = 30
MARKERS = Markers(end=1, assistant=5, think=6, end_think=7)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 40": {"top_k": 40},
    "min-p 0.05": {"min_p": 0.05},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.5},
    "bias": {"logit_bias": {9: -1000.0}},
}


def seconds(knobs: dict[str, Any], logits: mx.array, logprobs: int | None = None) -> float:
    """Of one draw."""
    choose = Chooser([9] * 8, MARKERS, SamplingOptions(**knobs), GenerationLimits(logprobs=logprobs))
    choose.finish(choose.begin(logits))
    choose.over = False
    choose.prepare(0)
    started = time.perf_counter()
    choose.finish(choose.begin(logits))
    return time.perf_counter() - started


def noise_seconds() -> float:
    started = time.perf_counter()
    noise(SamplingOptions(seed=3), 1000, VOCABULARY)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/sampling_cost.json")
    out = parser.parse_args().out
    logits = mx.array((np.random.default_rng(0).standard_normal(VOCABULARY) * 3).astype(np.float32))
    found: dict[str, list[float]] = {name: [] for name in [*OPTIONS, "5 log probabilities", "noise"]}
    for _ in range(REPEATS):
        for name, knobs in OPTIONS.items():
            found[name].append(seconds(knobs, logits))
        found["5 log probabilities"].append(seconds({"temperature": 0}, logits, 5))
        found["noise"].append(noise_seconds())
    report = {
        "vocabulary": VOCABULARY,
        "milliseconds": {name: round(statistics.median(times) * 1e3, 2) for name, times in found.items()},
        "least": {name: round(min(times) * 1e3, 2) for name, times in found.items()},
        "machine": f"{platform.system()} {platform.machine()}, shared",
    }
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
