"""What a constraint costs per token beside the model, with a vocabulary of 129,280.

    python bench/constraint_cost.py [--tokenizer FOLDER] [--out bench/results/constraint_cost.json]

FOLDER has a tokenizer.json of the official checkpoints; without it, a synthetic one of that size. Logits are
random and the token is drawn from what is allowed: strings wander through all tokens. Its cost is the
processor time of this thread in `mask` and `accept`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from dsv4_mlx.grammar.grammars import Grammars  # noqa: E402
from dsv4_mlx.grammar.rules import Json, Regex, Rule, ToolCalls  # noqa: E402
from dsv4_mlx.synthetic.tokenizer import tokenizer_json  # noqa: E402
from dsv4_mlx.tokenizer.template import Prompts  # noqa: E402

VOCABULARY = 129_280
TOKENS = 400
ALLOWED = 0.5  # ms

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "lost"]}},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 200}},
    },
    "required": ["name", "age", "email", "born", "tags", "notes"],
    "additionalProperties": False,
}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{i}",
            "strict": i % 2 == 0,
            "parameters": {
                "type": "object",
                "properties": {f"argument_{j}": {"type": ["string", "integer"][j % 2]} for j in range(8)},
            },
        },
    }
    for i in range(40)
]
RULES: dict[str, Rule] = {
    "any JSON object": Json(),
    "a schema of six properties": Json(json.dumps(_PERSON)),
    "a regular expression": Regex("([a-z]+ ){3,400}[0-9]{2,8}"),
    "calls of 40 tools": ToolCalls(json.dumps(_TOOLS), required=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/constraint_cost.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.tokenizer or Path(made)
        if options.tokenizer is None:
            (folder / "tokenizer.json").write_text(tokenizer_json(VOCABULARY), encoding="utf-8")
        result = measured(folder)
    result["tokenizer"] = "synthetic" if options.tokenizer is None else "official"
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0 if all(found["mean_ms"] <= ALLOWED for found in result["rules"].values()) else 1


def measured(folder: Path) -> dict[str, Any]:
    """Milliseconds of processor time: per token of each rule, per copy of logits, and to begin."""
    prompts = Prompts(folder, "april")
    grammars = Grammars(folder, VOCABULARY, prompts.markers)
    started = time.process_time()
    grammars.load()
    loading = time.process_time() - started
    rules = {}
    for name, rule in RULES.items():
        started = time.perf_counter()
        grammars.constraint(rule, thinking=False)
        compiling = time.perf_counter() - started
        rules[name] = {
            "compile_ms": round(compiling * 1e3, 1),
            **per_token(grammars, rule, prompts.markers.end),
        }
    grammars.close()
    return {
        "vocabulary": VOCABULARY,
        "index_seconds": round(loading, 2),
        "rules": rules,
        "machine": f"{platform.system()} {platform.machine()}, shared",
    }


def per_token(grammars: Grammars, rule: Rule, end: int) -> dict[str, float]:
    """TOKENS tokens under a rule, begun again where it ends."""
    rng = np.random.default_rng(0)
    constraint = grammars.constraint(rule, thinking=False)
    spent = []
    for _ in range(TOKENS):
        logits = rng.standard_normal(VOCABULARY).astype(np.float32)
        started = time.thread_time()
        mask = constraint.mask(VOCABULARY)
        spent.append(time.thread_time() - started)
        token = int(np.argmax(logits if mask is None else np.where(mask, logits, -np.inf)))
        if token == end:
            constraint = grammars.constraint(rule, thinking=False)
            continue
        started = time.thread_time()
        constraint.accept(token)
        spent[-1] += time.thread_time() - started
    return figures(spent)


def figures(seconds: list[float]) -> dict[str, float]:
    milliseconds = 1e3 * np.array(seconds)
    return {
        "mean_ms": round(float(milliseconds.mean()), 3),
        "median_ms": round(float(np.median(milliseconds)), 3),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
