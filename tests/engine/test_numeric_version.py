"""Whoever changes the code that computes decides whether `ops.NUMERIC_VERSION` must be raised.

No test of results can say so: their bits differ from machine to machine, and the kernels run on a Mac only.
So the code itself is held to digests in arithmetic.txt, a line a file, so that branches meet in few lines.
Comments, docstrings, annotations, messages and layout don't count. After the decision:

    python tests/engine/test_numeric_version.py
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

from dsv4_mlx.ops.table import NUMERIC_VERSION

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).with_name("arithmetic.txt")
CODE = (
    "dsv4_mlx/ops/reference/*.py", "dsv4_mlx/ops/kernels/*.py", "dsv4_mlx/model/*.py",
    "dsv4_mlx/ops/table.py", "dsv4_mlx/paging/paged_experts.py", "dsv4_mlx/engine/chunking.py",
    "metal/*.metal", "metal/common/*.h",
)  # fmt: skip
SILENT = {"ctx", "kind", "annotation", "returns", "type_comment", "type_params"}


def meaning(tree: object) -> str:
    """A syntax tree as text that no version of Python writes otherwise."""
    match tree:
        case ast.JoinedStr():
            return "message"
        case ast.Constant():
            return repr(tree.value)
        case ast.AST():
            parts = [meaning(value) for name, value in ast.iter_fields(tree) if name not in SILENT]
            return f"{type(tree).__name__}({' '.join(parts)})"
        case list():
            return " ".join(meaning(one) for one in tree if not _docstring(one))
    return str(tree)


def _docstring(tree: object) -> bool:
    return isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant)


def digest(name: str, text: str) -> str:
    if name.endswith(".py"):
        text = meaning(ast.parse(text))
    else:
        text = " ".join(re.sub(r"//(?! body:).*", "", text).split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def found() -> str:
    paths = sorted(path.relative_to(ROOT).as_posix() for pattern in CODE for path in ROOT.glob(pattern))
    lines = [f"{digest(path, (ROOT / path).read_text('utf-8'))} {path}" for path in paths]
    return "\n".join([f"numeric version {NUMERIC_VERSION}", *lines]) + "\n"


def test_the_numeric_version_was_decided_on() -> None:
    pinned, now = PINNED.read_text("utf-8").splitlines(), found().splitlines()
    changed = sorted({line.split()[-1] for line in set(pinned) ^ set(now)})
    assert pinned == now, (
        f"{', '.join(changed)}: not as pinned. If a bit of any result can differ, above all by another order "
        "of summation, raise NUMERIC_VERSION in dsv4_mlx/ops/table.py. "
        "Then: python tests/engine/test_numeric_version.py"
    )


def test_what_counts_as_a_change() -> None:
    base = 'def f(x: int) -> int:\n    """Sum."""\n    return x + 1\n'
    same = "def f(x):  # adds\n    return (x\n        + 1)\n"
    assert digest("a.py", base) == digest("a.py", same)
    assert digest("a.py", base) != digest("a.py", base.replace("x + 1", "1 + x"))
    assert digest("a.metal", "a = b;  // c\n\n") == digest("a.metal", "a =\n  b;")
    assert digest("a.metal", "a = b + c;") != digest("a.metal", "a = c + b;")


if __name__ == "__main__":
    PINNED.write_text(found(), "utf-8")
