"""Who may import whom. A part that is not in the table may not exist."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dsv4_mlx"

# part -> parts of dsv4_mlx that it may import, besides itself. From the ground up; `ops` is five parts.
PARTS: dict[str, set[str]] = {
    "errors": set(),
    "other_models": {"errors"},
    "config": {"other_models", "errors"},
    "machine": {"errors"},
    "ops.types": set(),
    "ops.reference": {"ops.types"},
    "ops.kernels": {"ops.types"},  # not reference: a test compares two independent things
    "ops.table": {"ops.reference", "ops.kernels", "ops.types"},
    "ops.selftest": {"ops.table", "ops.kernels", "machine"},
    "tokenizer": {"errors"},
    "model": {"ops.table", "ops.types", "config"},
    "checkpoint": {"config", "errors"},
    "weights": {"model", "checkpoint", "ops.table", "ops.types", "config", "errors"},
    "paging": {"weights", "model", "ops.types", "ops.reference", "machine", "errors"},
    "engine": {
        "paging", "weights", "checkpoint", "model", "ops.table", "tokenizer", "machine", "config", "errors",
    },
    "convert": {"checkpoint", "machine", "errors"},
    "synthetic": {"convert", "checkpoint", "config", "errors"},
    "hub": {"convert", "checkpoint", "machine", "other_models", "errors"},
    "grammar": {"engine", "tokenizer", "errors"},
    "scheduler": {"engine", "model", "tokenizer", "machine", "config", "errors"},
    "evaluation": {
        "engine", "paging", "weights", "model", "ops.table", "ops.selftest", "convert",
        "checkpoint", "tokenizer", "machine", "config", "errors",
    },
    "planning": {
        "engine", "paging", "weights", "ops.selftest", "convert", "checkpoint", "synthetic", "machine",
        "config",
    },
    "server": {"scheduler", "grammar", "engine", "tokenizer", "errors"},
    "api": {"server", "scheduler", "engine", "hub", "ops.selftest", "tokenizer", "errors"},
    "adapters": {"api", "engine", "model", "errors"},
    "terminal": {"machine", "errors"},
    "cli": {
        "server", "terminal", "scheduler", "evaluation", "planning", "hub", "convert", "grammar", "engine",
        "ops.selftest", "tokenizer", "machine", "errors",
    },
}  # fmt: skip

# part -> packages from outside that it may import
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "other_models": set(),
    "config": set(),
    "machine": {"mlx"},
    "ops.types": {"mlx"},
    "ops.reference": {"mlx", "numpy"},
    "ops.kernels": {"mlx", "numpy"},
    "ops.table": {"mlx"},
    "ops.selftest": {"mlx"},
    "tokenizer": {"deepseek_recipe"},
    "model": {"mlx", "numpy"},
    "checkpoint": {"numpy"},
    "weights": {"mlx", "numpy"},
    "paging": {"mlx", "numpy"},
    "engine": {"mlx", "numpy"},
    "convert": {"numpy", "mlx"},
    "synthetic": {"numpy", "tokenizers"},
    "hub": {"huggingface_hub"},
    "grammar": {"numpy", "llguidance"},
    "scheduler": {"mlx", "numpy", "deepseek_recipe"},
    "evaluation": {"mlx", "numpy"},
    "planning": {"mlx"},
    # the one place that may load mlx-lm and transformers
    "adapters": {"mlx", "mlx_lm", "transformers", "tokenizers", "deepseek_recipe"},
    "server": {"starlette", "uvicorn", "deepseek_recipe"},  # no mlx: the engine thread owns it
    "api": set(),
    "terminal": {"rich", "prompt_toolkit", "markdown_it", "pygments"},  # no mlx: it starts fast
    "cli": {"typer", "rich", "numpy", "huggingface_hub"},
}

ENTRY = {
    "__init__",
    "__main__",
    "__version__",
}  # dsv4_mlx/__init__.py and __main__.py hold no part of the program


LINKED = ("convert", "metal")  # folders of the checkout that the package links to


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every file of the package and of convert."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "convert").rglob("*.py")]
    found = {}
    for path in files:
        inside = path.relative_to(ROOT).with_suffix("").parts
        inside = inside if inside[0] == "dsv4_mlx" else ("dsv4_mlx", *inside)
        if inside[1] not in LINKED or path.is_relative_to(ROOT / inside[1]):
            found[".".join(inside).removesuffix(".__init__")] = path
    return found


def part_of(module: str) -> str | None:
    """The part that a module of dsv4_mlx belongs to; None for the package's own face."""
    names = module.split(".")[1:]
    if not names or names[0] in ENTRY:
        return None
    return ".".join(names[:2]) if names[0] == "ops" and len(names) > 1 else names[0]


def part_names() -> list[str]:
    return sorted({part for module in modules() if (part := part_of(module)) is not None} - {"ops"})


def files_of(part: str) -> list[Path]:
    return [path for module, path in sorted(modules().items()) if part_of(module) == part]


def imports(path: Path) -> set[str]:
    """Every module a file names, imports inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: use absolute imports"
            module = node.module or ""
            # `from dsv4_mlx import x` names the part in the alias, and so does `from dsv4_mlx.ops import x`
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names if module in ("dsv4_mlx", "dsv4_mlx.ops") else {module}
    return found


def test_every_part_is_in_the_table() -> None:
    assert set(part_names()) <= PARTS.keys()
    assert PARTS.keys() == OUTSIDE.keys()


@pytest.mark.parametrize("part", part_names())
def test_imports_follow_the_table(part: str) -> None:
    wrong = []
    for path in files_of(part):
        used = {part_of(name) for name in imports(path) if name.startswith("dsv4_mlx.")}
        forbidden = {name for name in used if name} - PARTS[part] - {part, "__version__"}
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


def test_the_house_stays_small() -> None:
    assert len(PARTS) <= 28
    assert sum(len(below) for below in PARTS.values()) <= 112


def test_every_arrow_is_used() -> None:
    used: dict[str, set[str]] = {}
    for module, path in modules().items():
        names = used.setdefault(part_of(module) or "", set())
        names |= {part for name in imports(path) if name.startswith("dsv4_mlx.") and (part := part_of(name))}
    unused = {f"{part} -> {below}" for part, all in PARTS.items() for below in all - used.get(part, set())}
    assert not unused


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for the type checker alone count, too: they are arrows in the reader's head.

    The package's own face is left out: it names what it gives to importers, who all import it.
    """
    known = {module: path for module, path in modules().items() if module != "dsv4_mlx"}
    arrows: dict[str, set[str]] = {}
    for module, path in known.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {name if name in known else str(node.module) for name in names}
        arrows[module] = found & known.keys() - {module}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for below in arrows[module]:
                walk(below, (*path, module))
            done.add(module)

    for module in arrows:
        walk(module, ())


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
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers == {"dsv4_mlx/machine/support.py", "dsv4_mlx/machine/mlx_switches.py"}
    text = (PACKAGE / "machine" / "mlx_switches.py").read_text("utf-8")
    switches = re.findall(r'"(\w+)"', text.split("\n\n", 1)[1])
    assert [name for name in switches if name.isupper()] == ["MLX_ENABLE_TF32", "MLX_DISABLE_COMPILE"]


def test_model_and_reference_touch_no_files() -> None:
    wrong = []
    for part in ("model", "ops.reference", "ops.table", "ops.kernels"):
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


@pytest.mark.parametrize(
    ("file", "name"), [("engine/session.py", "Session"), ("model/transformer.py", "Transformer")]
)
def test_nobody_sets_what_a_session_or_a_model_is_made_of(file: str, name: str) -> None:
    """What a step shall do otherwise is a parameter: an attribute set from outside is found by nobody."""
    own = PACKAGE / file
    made = next(
        n
        for n in ast.walk(ast.parse(own.read_text("utf-8")))
        if isinstance(n, ast.ClassDef) and n.name == name
    )
    names = {target.attr for target, owner in _set_attributes(made) if owner == "self"}
    assert len(names) > 3
    wrong = [
        f"{path.relative_to(ROOT)}:{target.lineno}: {owner}.{target.attr}"
        for path in modules().values()
        if path != own
        for target, owner in _set_attributes(ast.parse(path.read_text("utf-8")))
        if target.attr in names
        and owner.split(".")[-1] in ("session", "model", name)
        or "cast(" + name in owner
    ]
    assert not wrong


def _set_attributes(tree: ast.AST) -> list[tuple[ast.Attribute, str]]:
    """Every `owner.name = ...`: the target, and its owner as written."""
    targets = [t for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in n.targets]
    targets += [n.target for n in ast.walk(tree) if isinstance(n, ast.AnnAssign)]
    flat = [part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [(t, ast.unparse(t.value)) for t in flat if isinstance(t, ast.Attribute)]


def page() -> str:
    return (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_the_page_says_a_sentence_about_every_part_once() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", page(), re.M)
    assert sorted(name for name, _ in rows) == sorted(PARTS), "docs/architecture.md, Rooms: one row a part"
    assert all(len(sentence) > 20 for _, sentence in rows)


def test_the_page_draws_every_arrow_downwards() -> None:
    drawing = next(block for block in re.findall(r"```\n(.*?)```", page(), re.S) if block.startswith("cli\n"))
    floor = [(part, row) for row, line in enumerate(drawing.splitlines()) for part in line.split()]
    assert sorted(part for part, _ in floor) == sorted(PARTS), "docs/architecture.md, the drawing"
    row = dict(floor)
    up = [f"{part} -> {below}" for part, all in PARTS.items() for below in all if row[below] <= row[part]]
    assert not up, f"docs/architecture.md draws these beside or above: {up}"
