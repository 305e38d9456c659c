"""A name survives without its folder: no two public classes share one, no package hides its own module."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from test_architecture import modules

# an op's reference and its kernel are one thing twice: they share their file's name
TWINS = ("dsv4_mlx.ops.reference.", "dsv4_mlx.ops.kernels.")
SPEAKING = ("dsv4_mlx.cli.", "dsv4_mlx.server.protocols.")  # cli/NAME is a command, protocols/NAME a protocol


def classes(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"}


def test_no_two_public_classes_share_a_name() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for module, path in modules().items():
        for name in classes(path):
            where[name].append(module)
    assert not {name: found for name, found in where.items() if len(found) > 1}


def test_no_package_exports_a_function_named_like_one_of_its_modules() -> None:
    """`from package import name` would be one or the other, by what was imported before."""
    found = modules()
    known, hidden = found.keys(), []
    for module, path in found.items():
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            imported = {
                alias.asname or alias.name: f"{node.module}.{alias.name}"
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            hidden += [name for name, whole in imported.items() if f"{module}.{name}" in known - {whole}]
    assert not hidden


def test_a_file_name_repeats_only_where_its_room_speaks() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for module, path in modules().items():
        if path.stem not in ("__init__", "__main__") and not module.startswith((*TWINS, *SPEAKING)):
            where[path.stem].append(module)
    assert not {name: found for name, found in where.items() if len(found) > 1}


def test_a_kind_of_layer_goes_by_its_name() -> None:
    """config.json's 4 and 128 become `csa` and `hca` in config.py; nobody compares the numbers again."""
    found = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                numbers = [side.value for side in sides if isinstance(side, ast.Constant)]
                words = [
                    side.attr if isinstance(side, ast.Attribute) else ast.unparse(side) for side in sides
                ]
                if "ratio" in words and {4, 128} & {n for n in numbers if type(n) is int}:
                    found.append(f"{module}:{node.lineno}")
    assert not found
