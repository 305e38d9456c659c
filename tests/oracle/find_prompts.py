"""Search prompt seeds for `oracle.cases`, needed when the checkpoint generator changes. Numpy only.

    PYTHONPATH=tests:. python -m oracle.find_prompts [CASE ...] [--seeds N]

For goldens: the largest margin of all discrete choices. For simulated quantisation: the smallest median
difference from float64 that several noisy float32 runs have at worst.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle import goldens
from oracle.cases import CASES, Case, Prompt
from oracle.numpy_model import NumpyModel

Array = NDArray[Any]

NOISE = 2e-7  # relative error of a float32 matrix product here, a little more than numpy's own
RUNS = 10


class Noisy(NumpyModel):
    """Simulated quantisation in float32 with another rounding error in every matrix product."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array], seed: int = 0) -> None:
        super().__init__(config, weights, "official", np.float32)
        self.random = np.random.default_rng(seed)

    def linear(self, x: Array, name: str) -> Array:
        out = super().linear(x, name)
        noise = self.random.standard_normal(out.shape, dtype=np.float32)
        return np.asarray(out * (1 + np.float32(NOISE) * noise))


def margin(case: Case, weights: Mapping[str, Array], prompt: Prompt) -> float:
    model = NumpyModel(case.config, weights, dtype=np.float32)
    model.logits(prompt.tokens(case.config["vocab_size"]))
    return min(model.trace.index_margin, model.trace.router_margin)


def worst_median(case: Case, weights: Mapping[str, Array], prompt: Prompt) -> float:
    """Largest median difference of the noisy runs, in std."""
    tokens = prompt.tokens(case.config["vocab_size"])
    reference = NumpyModel(case.config, weights, "official").logits(tokens)
    runs = (Noisy(case.config, weights, seed).logits(tokens) for seed in range(RUNS))
    return max(float(np.median(np.abs(run - reference))) for run in runs) / float(reference.std())


def main() -> None:
    parser = argparse.ArgumentParser(description="Search prompt seeds.")
    parser.add_argument("case", nargs="*", help="names of cases; all if none is given")
    parser.add_argument("--seeds", type=int, default=16, help="how many seeds to try for each prompt")
    options = parser.parse_args()
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = goldens.write(Path(folder) / case.name, case.config, case.seed)
            weights = {name: source[name] for name in source}
        for index, prompt in enumerate(case.prompts):
            tried = [replace(prompt, seed=seed) for seed in range(options.seeds)]
            ranked = sorted(((margin(case, weights, one), one.seed) for one in tried), reverse=True)
            found = ", ".join(f"seed {seed} margin {value:.2g}" for value, seed in ranked[:3])
            print(f"{case.name} prompts[{index}]: {found}", flush=True)
        tried = [replace(case.official, seed=seed) for seed in range(options.seeds)]
        ranked = sorted((worst_median(case, weights, one), one.seed) for one in tried)
        found = ", ".join(f"seed {seed} median {value:.2g}" for value, seed in ranked[:3])
        print(f"{case.name} official: {found}", flush=True)


if __name__ == "__main__":
    main()
