"""The package as an importer sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dsv4_mlx

ROOT = Path(__file__).parent.parent
HEAVY = (
    "mlx",
    "mlx_lm",
    "transformers",
    "torch",
    "numpy",
    "huggingface_hub",
    "deepseek_recipe",
    "tokenizers",
    "starlette",
    "uvicorn",
)


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.split())


def test_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab.]\w+)?", dsv4_mlx.__version__)


def test_types_are_shipped() -> None:
    assert (Path(dsv4_mlx.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    "module", ["dsv4_mlx", "dsv4_mlx.cli", "dsv4_mlx.config", "dsv4_mlx.checkpoint.manifest"]
)
def test_start_up_is_light(module: str) -> None:
    """`dsv4-mlx --help` must answer at once; heavy packages are imported by the command that needs them."""
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_the_version_is_there_at_once() -> None:
    """What takes a tenth of a second to import, and what no command needs before it runs, is not imported."""
    slow = {*HEAVY, "logging", "urllib.request", "http", "ssl", "asyncio", "concurrent", "rich", "email"}
    code = "import sys\nfrom dsv4_mlx.cli.main import run\nrun(['--version'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    version, modules = done.stdout.splitlines()
    assert version == f"dsv4-mlx {dsv4_mlx.__version__}"
    assert "dsv4_mlx.cli.main" in modules.split()
    assert not set(modules.split()) & slow


def test_model_needs_no_other_framework() -> None:
    loaded = modules_after("import dsv4_mlx.engine, dsv4_mlx.convert, dsv4_mlx.synthetic")
    assert not loaded & {"torch", "transformers", "mlx_lm", "huggingface_hub", "rich", "typer"}


def test_convert_is_one_module() -> None:
    """The converter lives beside the package and is imported through it; loaded twice it would be two."""
    loaded = modules_after("import dsv4_mlx.convert, dsv4_mlx.cli")
    assert "convert" not in loaded


def test_every_module_has_one_name() -> None:
    """convert/ and metal/ are links in a checkout: nothing else of it can be imported through the package."""
    code = (
        "import pkgutil, importlib, dsv4_mlx\n"
        "names = [m.name for m in pkgutil.walk_packages(dsv4_mlx.__path__, 'dsv4_mlx.', lambda name: None)]\n"
        "assert len(names) == len(set(names)) < 400, len(names)\n"
        "assert 'dsv4_mlx.convert.run' in names, names\n"
        "for name in ('dsv4_mlx.dsv4_mlx', 'dsv4_mlx.tests', 'dsv4_mlx.bench'):\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError:\n"
        "        continue\n"
        "    raise AssertionError(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_copy_that_lost_its_links_says_so(tmp_path: Path) -> None:
    """As a zip leaves it that was unpacked by a program without links."""
    package = tmp_path / "dsv4_mlx"
    package.mkdir()
    for name in ("__init__.py", "errors.py"):
        (package / name).write_bytes((Path(dsv4_mlx.__file__).parent / name).read_bytes())
    machine = package / "machine"
    machine.mkdir()
    for name in ("__init__.py", "mlx_switches.py"):
        (machine / name).write_bytes((Path(dsv4_mlx.__file__).parent / "machine" / name).read_bytes())
    (package / "convert").write_text("../convert")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import dsv4_mlx"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1 and "lost its symbolic links" in done.stderr.replace("\n", " "), done.stderr
