"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE_LINES = 400
FUNCTION_LINES = 70
FOLDERS = ("dsv4_mlx", "convert", "metal", "tests", "bench")


def sources(*suffixes: str) -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert found
    return sorted(path for path in found if "__pycache__" not in path.parts)


def long_functions(text: str, limit: int = FUNCTION_LINES) -> list[str]:
    return [
        f"{node.name} at line {node.lineno}: {(node.end_lineno or node.lineno) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or node.lineno) - node.lineno + 1 > limit
    ]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in sources(".py", ".metal", ".h")}
    wrong = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > FILE_LINES]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {function}"
        for path in sources(".py")
        for function in long_functions(path.read_text("utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_generator_from_prompt_to_events_is_short() -> None:
    assert len((ROOT / "dsv4_mlx/engine/decode.py").read_text("utf-8").splitlines()) <= 120


def test_a_long_function_is_found() -> None:
    text = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    assert long_functions(text) == [f"f at line 1: {FUNCTION_LINES + 1} lines"]
