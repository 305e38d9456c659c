"""Wheel and source distribution in empty environments: installed, run, tested and type-checked there.

Takes minutes and needs the package index. The tests run from a folder that holds a copy of `tests/` only, by
the `pytest` script: started another way, Python would import the checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging_checkout import IGNORED, ROOT, build, copy, run

pytestmark = pytest.mark.long

# These look at the checkout's own files, or build from them.
OF_THE_CHECKOUT = (
    "test_architecture.py", "test_sizes.py", "test_docs.py", "test_package.py", "reference/test_pairing.py",
    "packaging", "bench", "paging/test_graphs.py", "paging/test_policy.py",
    "planning/test_timeline.py",
)  # fmt: skip
WHERE = """
import dsv4_mlx, dsv4_mlx.convert
for module in (dsv4_mlx, dsv4_mlx.convert):
    assert "site-packages" in module.__file__, module.__file__
"""
WHOLE = """
from importlib.resources import files
from importlib.util import find_spec
assert (files("dsv4_mlx.metal") / "README.md").read_text().startswith("# Metal")
assert (files("dsv4_mlx") / "py.typed").is_file()
assert find_spec("convert") is None
assert find_spec("metal") is None
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel, made by way of the sdist, and one sdist: what would be published."""
    folder = tmp_path_factory.mktemp("built")
    return build(copy(folder / "dsv4-mlx"), folder / "dist")


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel, what it asks for, and nothing else."""
    return environment(tmp_path_factory.mktemp("wheel-environment"), str(wheel))


@pytest.fixture(scope="module")
def tested(installed: Path) -> Path:
    """The same with the tools for tests, in the versions of the environment that runs this."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [re.match(r"[\w-]+", need) for need in settings["dependency-groups"]["dev"]]
    pip(installed, *(f"{name[0]}=={version(name[0])}" for name in names if name))
    return installed


def environment(folder: Path, *packages: str) -> Path:
    run(sys.executable, "-m", "venv", str(folder / "venv"), cwd=folder)
    programs = folder / "venv" / "bin"
    pip(programs, *packages)
    return programs


def pip(programs: Path, *packages: str) -> None:
    command = (str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*command, *packages, cwd=programs)


def clean(home: Path) -> dict[str, str]:
    """An environment without this one's paths, and a home of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DSV4", "UV_"))
    }
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}


def check_program(program: Path, folder: Path) -> None:
    """`dsv4-mlx` answers, and does its main job."""
    env = clean(folder)
    assert run(str(program), "--version", cwd=folder, env=env).startswith("dsv4-mlx ")
    said = run(str(program), "demo", "--dir", str(folder / "demo"), cwd=folder, env=env)
    assert "--think max" in said


@pytest.mark.parametrize("kind", ("*.whl", "*.tar.gz"))
def test_installs_into_an_empty_environment(
    built: Path, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "*.whl":
        programs: Path = request.getfixturevalue("installed")
    else:
        programs = environment(tmp_path, str(next(built.glob(kind))))
    (tmp_path / "empty").mkdir()
    run(str(programs / "python"), "-c", WHERE + WHOLE, cwd=tmp_path / "empty", env=clean(tmp_path))
    check_program(programs / "dsv4-mlx", tmp_path / "empty")


def test_tests_pass_against_the_wheel(tested: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=IGNORED)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # pytest's settings
    (tmp_path / "tests" / "test_where.py").write_text(f"def test_where():\n    exec({WHERE!r})\n")
    skipped = [f"--ignore=tests/{name}" for name in OF_THE_CHECKOUT]
    two = ("-n", "2", "--dist", "loadfile")
    command = (str(tested / "pytest"), "-q", *two, "-m", "not long", *skipped, "tests/test_where.py", "tests")
    said = run(*command, cwd=tmp_path, env=clean(tmp_path))
    assert " passed" in said
    assert "failed" not in said


def test_import_rules_hold_in_the_wheel(tested: Path, wheel: Path, tmp_path: Path) -> None:
    """convert/ is inside the package here: another place, the same rules."""
    ZipFile(wheel).extractall(tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_architecture.py", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    said = run(str(tested / "pytest"), "-q", "tests", "-k", "imports or packages", cwd=tmp_path)
    assert " passed" in said
    assert (tmp_path / "dsv4_mlx" / "convert" / "run.py").is_file()


def test_types_hold_in_the_wheel(tested: Path, wheel: Path, tmp_path: Path) -> None:
    """mypy in a checkout doesn't see convert/ as a part of the package; here it must see every file."""
    count = sum(name.endswith(".py") for name in ZipFile(wheel).namelist())
    settings = str(ROOT / "pyproject.toml")
    said = run(
        str(tested / "mypy"),
        "--strict",
        "--config-file",
        settings,
        "-p",
        "dsv4_mlx",
        cwd=tmp_path,
        env=clean(tmp_path),
    )
    seen = re.search(r"no issues found in (\d+) source files", said)
    assert seen
    assert int(seen[1]) >= count  # and the folder metal/, which is a namespace
    (tmp_path / "wrong.py").write_text(
        "from dsv4_mlx.convert.run import convert\n\nconvert(1)\nreveal_type(convert)\n"
    )
    with pytest.raises(AssertionError, match="wrong.py:3: error"):
        run(str(tested / "mypy"), "--strict", "wrong.py", cwd=tmp_path)


@pytest.mark.parametrize("tool", ("uv", "pipx"))
def test_tools_install_the_command(tool: str, wheel: Path, tmp_path: Path) -> None:
    """As docs/install.md says, with the wheel in place of the name."""
    programs = environment(tmp_path, tool)
    places = {
        "UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "UV_CACHE_DIR": "uv-cache",
        "PIPX_HOME": "pipx", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man",
    }  # fmt: skip
    env = clean(tmp_path) | {name: str(tmp_path / place) for name, place in places.items()}
    command = ("tool", "install", "--python", sys.executable) if tool == "uv" else ("install",)
    run(str(programs / tool), *command, str(wheel), cwd=tmp_path, env=env)
    (tmp_path / "empty").mkdir()
    check_program(tmp_path / "bin" / "dsv4-mlx", tmp_path / "empty")
