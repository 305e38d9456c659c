"""The JSON Schema Test Suite against the grammars: is anything that a schema forbids allowed?

    python bench/schema_suite.py SUITE/tests/draft2020-12 [SUITE/tests/draft7 ...]

SUITE is the public suite; the source distribution of the package jsonschema holds it in its folder `json`.
Every instance is said as a model would say it. A schema may be refused, and a valid instance may be out of
reach (keys in another order); an instance that the schema forbids must not be. Formats are annotations in
these drafts, and are counted apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dsv4_mlx.engine.constraint import Constraint  # noqa: E402
from dsv4_mlx.errors import InputError  # noqa: E402
from dsv4_mlx.grammar.grammars import Grammars  # noqa: E402
from dsv4_mlx.grammar.rules import Json  # noqa: E402
from dsv4_mlx.synthetic.tokenizer import tokenizer_json  # noqa: E402
from dsv4_mlx.tokenizer.template import Prompts  # noqa: E402

SIZE = 2048


def main() -> int:
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "tokenizer.json").write_text(tokenizer_json(SIZE), encoding="utf-8")
        prompts = Prompts(Path(made), "april")
        grammars = Grammars(Path(made), SIZE, prompts.markers)
        for folder in sys.argv[1:]:
            for path in sorted(Path(folder).rglob("*.json")):
                for case in json.loads(path.read_text(encoding="utf-8")):
                    judge(case, path, grammars, prompts, counts)
        grammars.close()
    print(json.dumps(counts, indent=1))
    return 1 if counts["forbidden and allowed"] else 0


def judge(
    case: dict[str, Any], path: Path, grammars: Grammars, prompts: Prompts, counts: Counter[str]
) -> None:
    """Count one schema and its instances; names the forbidden ones that are allowed."""
    counts["schemas"] += 1
    try:
        constraint = grammars.constraint(Json(json.dumps(case["schema"])), thinking=False)
    except InputError:
        counts["schemas refused"] += 1
        return
    for test in case["tests"]:
        try:
            tokens = prompts.tokenizer.encode(json.dumps(test["data"], ensure_ascii=False))
        except UnicodeEncodeError:
            continue
        found = "allowed" if says(constraint.fork(), [*tokens, prompts.markers.end]) else "out of reach"
        of = "format, " * ("format" in path.parts) + ("valid" if test["valid"] else "forbidden")
        counts[f"{of} and {found}"] += 1
        if f"{of} and {found}" == "forbidden and allowed":
            print(f"{path.name}: {case['description']}: {test['description']}: {test['data']!r}")


def says(constraint: Constraint, tokens: list[int]) -> bool:
    try:
        for token in tokens:
            constraint.accept(token)
    except InputError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
