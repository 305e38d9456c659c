"""Functions of model and ops say the shapes of the arrays they take or return, in letters of one glossary.

In the docstring; a short helper without one says it in a comment on its signature.
"""

from __future__ import annotations

import ast
import re
from functools import cache

from test_architecture import PACKAGE

ROOMS = ("model", "ops")
GLOSSARIES = ("model/__init__.py", "ops/reference/__init__.py")
# what an annotation of an array is called, or of named arrays
ARRAYS = {
    "array", "NDArray", "ndarray", "Streams", "StreamMix", "BlockInput", "AttendedRows", "Bank", "Routed",
    "Chunk",
}  # fmt: skip
SHAPE = re.compile(r"(?<![\w\]])\[[^\[\]|]*\]")  # no index, as a[k]; `|` joins columns by name
LETTER = re.compile(r"(?<![A-Za-z_])[A-Z]'?(?![A-Za-z_])")
SHARE = 0.95


@cache
def functions() -> list[tuple[str, str]]:
    """Place of every function that takes or returns arrays, and what it says of itself."""
    found = []
    for path in sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and names(node) & ARRAYS:
                signature = lines[node.lineno - 1 : node.body[0].lineno - 1]
                comments = [line.split("#", 1)[1] for line in signature if "#" in line]
                says = " ".join([ast.get_docstring(node) or "", *comments])
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", says))
    return found


def names(function: ast.FunctionDef) -> set[str]:
    """Every name in the function's annotations."""
    given = function.args
    wanted = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    annotations = [one.annotation for one in wanted if one is not None] + [function.returns]
    inside = [node for one in annotations if one is not None for node in ast.walk(one)]
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in inside}


def glossary(file: str) -> str:
    text = ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))) or ""
    return next(part for part in text.split("\n\n") if part.startswith("Shapes:"))


def letters(shape: str) -> set[str]:
    return {letter.rstrip("'") for letter in LETTER.findall(shape)}


def test_functions_say_the_shapes_of_their_arrays() -> None:
    found = functions()
    silent = [where for where, says in found if not SHAPE.search(says)]
    assert len(found) > 150
    assert len(silent) <= (1 - SHARE) * len(found), silent


def test_letters_are_those_of_the_one_glossary() -> None:
    first, second = (glossary(file) for file in GLOSSARIES)
    assert first == second
    known = set(re.findall(r"(?:^Shapes:|[,;]|groups \()?\s([A-Z])(?= [a-z])", first))
    strange = {
        where: sorted(unknown)
        for where, says in functions()
        for shape in SHAPE.findall(says)
        if (unknown := letters(shape) - known)
    }
    assert not strange


def test_what_counts_as_a_shape() -> None:
    assert letters("[B, G', 2 I, >= K / 2, T or 1, width]") == {"B", "G", "I", "K", "T"}
    assert SHAPE.findall("x [B, T] of [values | gates], x[T]") == ["[B, T]"]
    (function,) = ast.parse("def f(x: list[mx.array], *y: int) -> Bank | None: ...").body
    assert isinstance(function, ast.FunctionDef) and names(function) >= {"array", "Bank"}
