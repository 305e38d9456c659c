"""Who may import whom. A part that is not in the table may not exist."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dsv4_mlx"

# part -> parts of dsv4_mlx that it may import, besides itself
PARTS: dict[str, set[str]] = {
    "errors": set(),
    "platforms": {"errors"},
    "tf32": {"errors"},
    "mishaps": {"platforms"},
    "strangers": {"errors"},
    "config": {"strangers", "errors"},
    "manifest": {"errors"},
    "official": {"config"},
    "checkpoint": {"config", "official", "manifest", "errors"},
    "operands": set(),
    "reference": {"operands", "errors"},
    "kernels": {"operands", "errors"},  # not reference: a test compares two independent things
    "ops": {"reference", "kernels", "operands", "errors"},
    "model": {"config", "ops", "reference", "operands", "errors"},
    "weights": {
        "model",
        "checkpoint",
        "official",
        "manifest",
        "config",
        "ops",
        "reference",
        "operands",
        "errors",
    },  # fmt: skip
    "paging": {"weights", "model", "manifest", "config", "ops", "reference", "operands", "errors"},
    "checking": {"kernels", "ops", "tf32"},
    "acceptance": {
        "chat",
        "checking",
        "engine",
        "convert",
        "weights",
        "model",
        "manifest",
        "config",
        "ops",
        "operands",
        "errors",
    },  # fmt: skip
    "evaluation": {"engine", "weights", "chat", "config", "errors"},
    "doctor": {
        "checking",
        "kernels",
        "engine",
        "paging",
        "convert",
        "synthetic",
        "official",
        "config",
        "tf32",
        "mishaps",
    },
    "chat": {"errors"},
    "engine": {
        "paging",
        "weights",
        "model",
        "ops",
        "chat",
        "config",
        "manifest",
        "mishaps",
        "tf32",
        "platforms",
        "errors",
    },  # fmt: skip
    "planning": {
        "doctor",
        "engine",
        "weights",
        "convert",
        "checkpoint",
        "paging",
        "synthetic",
        "config",
        "manifest",
        "official",
        "errors",
    },  # fmt: skip
    "hub": {"convert", "checkpoint", "disks", "config", "errors"},
    "constrain": {"engine", "chat", "errors"},
    "forecast": set(),
    "disks": set(),
    "convert": {"checkpoint", "disks", "config", "official", "manifest", "errors"},
    "synthetic": {"config", "official", "errors"},
    "serving": {"engine", "weights", "chat", "model", "config", "errors"},
    "server": {"serving", "constrain", "engine", "weights", "chat", "mishaps", "errors"},
    "terminal": {"errors"},
    "adapters": {"engine", "model", "official", "errors"},
    "cli": {
        "server",
        "serving",
        "acceptance",
        "evaluation",
        "checking",
        "disks",
        "doctor",
        "ops",
        "terminal",
        "manifest",
        "engine",
        "chat",
        "constrain",
        "planning",
        "hub",
        "strangers",
        "convert",
        "synthetic",
        "platforms",
        "mishaps",
        "errors",
    },  # fmt: skip
}

# part -> packages from outside that it may import
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "platforms": set(),
    "tf32": set(),
    "mishaps": set(),
    "strangers": set(),
    "config": set(),
    "manifest": set(),
    "official": set(),
    "checkpoint": {"numpy"},
    "operands": {"mlx"},
    "reference": {"mlx", "numpy"},
    "kernels": {"mlx", "numpy"},
    "ops": {"mlx"},
    "model": {"mlx", "numpy"},
    "weights": {"mlx", "numpy"},
    "paging": {"mlx", "numpy"},
    "checking": {"mlx"},
    "acceptance": {"mlx", "numpy"},
    "evaluation": {"mlx", "numpy"},
    "doctor": {"mlx"},
    "chat": {"deepseek_recipe"},
    "engine": {"mlx", "numpy"},
    "planning": {"mlx"},
    "hub": {"huggingface_hub"},
    "constrain": {"numpy", "llguidance"},
    "forecast": set(),
    "disks": set(),
    "convert": {"numpy", "mlx"},
    "synthetic": {"numpy", "tokenizers"},
    "serving": {"mlx", "numpy", "deepseek_recipe"},
    "server": {"starlette", "uvicorn", "deepseek_recipe"},  # no mlx: the engine thread owns it
    "terminal": {"rich", "prompt_toolkit", "markdown_it", "pygments"},  # no mlx: it starts fast
    # the one place that may load mlx-lm and transformers
    "adapters": {"mlx", "mlx_lm", "transformers", "tokenizers", "deepseek_recipe"},
    "cli": {"typer", "rich", "numpy", "huggingface_hub"},
}

ENTRY = {"__init__", "__main__"}  # dsv4_mlx/__init__.py and __main__.py hold no part of the program


def part_names() -> list[str]:
    found = {path.stem for path in PACKAGE.glob("*.py")} - ENTRY
    found |= {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    return sorted(found | ({"convert"} if (ROOT / "convert").is_dir() else set()))


def files_of(part: str) -> list[Path]:
    folders = [PACKAGE / part, ROOT / part] if part == "convert" else [PACKAGE / part]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    module = PACKAGE / f"{part}.py"
    return [*files, module] if module.is_file() else files


def imports(path: Path) -> set[str]:
    """Every module a file names, imports inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: use absolute imports"
            module = node.module or ""
            # `from dsv4_mlx import x` names the part in the alias
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "dsv4_mlx" else {module}
    return found


def test_every_part_is_in_the_table() -> None:
    assert set(part_names()) <= PARTS.keys()
    assert PARTS.keys() == OUTSIDE.keys()


@pytest.mark.parametrize("part", part_names())
def test_imports_follow_the_table(part: str) -> None:
    wrong = []
    for path in files_of(part):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("dsv4_mlx.")}
        forbidden = used - PARTS[part] - {part, "__version__"}
        wrong += [f"{path.relative_to(ROOT)}: may not import dsv4_mlx.{name}" for name in sorted(forbidden)]
    assert files_of(part)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", part_names())
def test_outside_packages_follow_the_table(part: str) -> None:
    wrong = []
    for path in files_of(part):
        used = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"dsv4_mlx"}
        wrong += [f"{path.relative_to(ROOT)}: may not import {name}" for name in sorted(used - OUTSIDE[part])]
    assert not wrong, "\n".join(wrong)


def test_table_has_no_circle() -> None:
    def reached(part: str, path: tuple[str, ...] = ()) -> None:
        assert part not in path, " -> ".join([*path, part])
        for below in PARTS[part]:
            reached(below, (*path, part))

    for part in PARTS:
        reached(part)


def test_environment_is_read_in_one_place() -> None:
    """The user's settings; MLX's own switch is set, and read back, in another one."""
    readers = set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "convert").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers == {"dsv4_mlx/cli/options.py", "dsv4_mlx/machine/mlx_switches.py"}
    switches = re.findall(r'"(\w+)"', (PACKAGE / "tf32.py").read_text("utf-8").split("\n\n", 1)[1])
    assert [name for name in switches if name.isupper()] == ["MLX_ENABLE_TF32"]  # and nothing of the user's


def test_model_and_reference_touch_no_files() -> None:
    wrong = []
    for part in ("model", "reference", "ops", "kernels"):
        for path in files_of(part):
            used = imports(path) & {"os", "io", "pathlib", "mmap", "shutil", "tempfile"}
            source = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            opens = [node for node in source if isinstance(node, ast.Name) and node.id == "open"]
            if used or opens:
                wrong.append(f"{path.relative_to(ROOT)}: {sorted(used) or 'open'}")
    assert not wrong, "\n".join(wrong)


def test_table_finds_a_wrong_import(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        "def f():\n    from dsv4_mlx import weights\n    import torch\n    import dsv4_mlx.cli.main\n"
    )
    assert imports(file) == {"dsv4_mlx.weights", "torch", "dsv4_mlx.cli.main"}
