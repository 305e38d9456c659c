"""The package stands alone: it could be taken out of this repository as it is."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
NEEDS = {"numpy", "clang", "mlx", "pytest", "metal_proof"}  # besides the standard library


def imported(path: Path) -> set[str]:
    """First names of every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_it_imports_nothing_of_this_program() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    wrong = {
        str(path.relative_to(PACKAGE)): extra
        for path in files
        if (extra := imported(path) - NEEDS - set(sys.stdlib_module_names))
    }
    assert not wrong


def test_an_import_of_the_program_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from dsv4_mlx.ops import types\n    import torch.nn\n")
    assert imported(file) == {"dsv4_mlx", "torch"}
