"""Make the goldens again: transformers float32 on synthetic official checkpoints.

    PYTHONPATH=tests:. python -m oracle.make_goldens [CASE ...]

Needs torch and transformers, which nothing else here does. A case is refused, with the reason, if its
numbers would make a poor judge: prefill and cached decode of transformers disagree, a discrete choice is
nearly tied, the logits are degenerate, or the clamp never acts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle import goldens, transformers_model
from oracle.cases import CASES, MIN_MARGIN, Case, Prompt
from oracle.numpy_model import NumpyModel, Trace
from oracle.official import OfficialCheckpoint

Array = NDArray[Any]

DECODE_TOLERANCE = 3e-5  # transformers against itself, in std of the logits
NUMPY_TOLERANCE = 3e-5
LOGITS_STD = (0.5, 10.0)
MIN_CLAMPED = 1e-4  # share of expert pre-activations that the clamp changes


def facts(trace: Trace) -> dict[str, Any]:
    """What the numpy run saw; a margin that never existed is null."""
    return {
        "index_selections": trace.index_selections,
        "index_margin": trace.index_margin if trace.index_selections else None,
        "router_margin": trace.router_margin if trace.router_selections else None,
        "clamped_share": sum(trace.clamped.values()) / trace.activations,
    }


def complaints(std: float, decode: float, against_numpy: float, seen: dict[str, Any]) -> list[str]:
    """Why a prompt can't judge an implementation; empty if it can."""
    found = []
    if not LOGITS_STD[0] <= std <= LOGITS_STD[1]:
        found.append(f"logits std {std:.3g} is outside {LOGITS_STD}")
    if not decode <= DECODE_TOLERANCE:
        found.append(f"transformers' prefill and cached decode differ by {decode:.3g} std")
    if not against_numpy <= NUMPY_TOLERANCE:
        found.append(f"transformers and the numpy model differ by {against_numpy:.3g} std")
    for kind in ("index_margin", "router_margin"):
        if seen[kind] is not None and not seen[kind] >= MIN_MARGIN:
            found.append(f"{kind} {seen[kind]:.3g} is a near tie: oracle.find_prompts finds another seed")
    return found


def run_prompt(
    model: Any, ours: NumpyModel, prompt: Prompt, vocabulary: int
) -> tuple[dict[str, Array], dict[str, Any], list[str]]:
    """Stored arrays, facts for the manifest, and complaints."""
    tokens = prompt.tokens(vocabulary)
    logits = transformers_model.prefill(model, tokens.tolist())
    decoded = transformers_model.decode(model, tokens.tolist(), prompt.split)
    independent = ours.logits(tokens)
    std = float(logits.std(dtype=np.float64))
    decode = float(np.abs(decoded - logits).max()) / std
    against_numpy = float(np.abs(independent - logits).max()) / std
    seen = facts(ours.trace)
    stored = goldens.summary(tokens, logits)
    entry = {
        "length": prompt.length,
        "split": prompt.split,
        "seed": prompt.seed,
        "logits_std": std,
        "distinct_top1": len(np.unique(stored["top1"])),
        "transformers_decode_vs_prefill": decode,
        "numpy_vs_transformers": against_numpy,
        **seen,
    }
    return stored, entry, complaints(std, decode, against_numpy, seen)


def run_case(case: Case, weights: OfficialCheckpoint) -> tuple[dict[str, Array], dict[str, Any], list[str]]:
    """The same for a whole case; array names are prefixed with the prompt's number."""
    model = transformers_model.load(case.config, weights)
    ours = NumpyModel(case.config, weights)
    arrays: dict[str, Array] = {}
    entries, found = [], []
    for index, prompt in enumerate(case.prompts):
        stored, entry, wrong = run_prompt(model, ours, prompt, case.config["vocab_size"])
        arrays |= {f"{index}.{key}": value for key, value in stored.items()}
        entries.append(entry)
        found += [f"{case.name}[{index}]: {text}" for text in wrong]
        print(f"{case.name}[{index}] {json.dumps(entry)}", flush=True)
    if max(entry["clamped_share"] for entry in entries) < MIN_CLAMPED:
        found.append(f"{case.name}: the clamp never acts: lower swiglu_limit")
    selects = 4 in case.config["compress_ratios"] and case.prompts[0].length // 4 > case.config["index_topk"]
    if selects and not entries[0]["index_selections"]:
        found.append(f"{case.name}: the indexer never selects")
    description = {
        "purpose": case.purpose,
        "seed": case.seed,
        "config": case.config,
        "checkpoint_sha256": weights.digest(),
        "prompts": entries,
    }
    return arrays, description, found


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy")
    return {
        "python": platform.python_version(),
        **{name: str(importlib.import_module(name).__version__) for name in names},
    }


def store(made: dict[str, tuple[dict[str, Array], dict[str, Any]]]) -> None:
    """Write the given cases; entries of the manifest for other cases stay as they are."""
    goldens.FOLDER.mkdir(exist_ok=True)
    kept = goldens.manifest()["cases"] if goldens.MANIFEST.exists() else {}
    for name, (arrays, description) in made.items():
        path = goldens.FOLDER / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        kept[name] = {**description, "npz_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    cases = {case.name: kept[case.name] for case in CASES if case.name in kept}
    content = {"format": 1, "command": goldens.COMMAND, "versions": versions(), "cases": cases}
    goldens.MANIFEST.write_text(json.dumps(content, indent=1) + "\n")
    size = sum(path.stat().st_size for path in goldens.FOLDER.iterdir())
    if size > goldens.SIZE_LIMIT:
        raise SystemExit(f"the goldens take {size} bytes, more than {goldens.SIZE_LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the goldens again.")
    parser.add_argument("case", nargs="*", help="names of cases; all if none is given")
    parser.add_argument("--dry-run", action="store_true", help="compute and check, write nothing")
    options = parser.parse_args()
    unknown = set(options.case) - {case.name for case in CASES}
    if unknown:
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    made, problems = {}, []
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            weights = goldens.write(Path(folder) / case.name, case.config, case.seed)
            arrays, description, found = run_case(case, weights)
        print(f"{case.name}: {time.monotonic() - began:.0f} s", flush=True)
        problems += found
        made[case.name] = arrays, description
    if problems:
        raise SystemExit("nothing is written:\n" + "\n".join(problems))
    if not options.dry_run:
        store(made)


if __name__ == "__main__":
    main()
