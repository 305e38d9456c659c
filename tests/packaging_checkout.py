"""A clean copy of the checkout, and distributions built from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("dsv4_mlx", "convert", "metal", "tests", "bench", "docs", ".ci")
FILES = (
    "pyproject.toml", ".gitignore", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
)  # fmt: skip
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache", "*.safetensors", "*.tmp", ".hypothesis")
DEMO = ROOT / "dsv4_mlx" / "demo"
IN_WHEEL = {"dsv4_mlx": "dsv4_mlx", "convert": "dsv4_mlx/convert", "metal": "dsv4_mlx/metal"}


def copy(target: Path) -> Path:
    """The checkout's files without what tools left in it."""
    for part in PARTS:
        shutil.copytree(ROOT / part, target / part, ignore=IGNORED)
    if DEMO.is_dir():  # the only weights that belong to the checkout
        shutil.copytree(DEMO, target / DEMO.relative_to(ROOT), dirs_exist_ok=True)
    for name in FILES:
        shutil.copy(ROOT / name, target / name)
    return target


def expected_in_wheel(checkout: Path) -> set[str]:
    """Every file of the three folders, under its name in a wheel."""
    return {
        f"{place}/{path.relative_to(checkout / part).as_posix()}"
        for part, place in IN_WHEEL.items()
        for path in (checkout / part).rglob("*")
        if path.is_file()
    }


def build(checkout: Path, out: Path, *options: str) -> Path:
    """Build what `options` ask for; the one file of `out`, or `out`."""
    run(sys.executable, "-m", "build", "--outdir", str(out), *options, str(checkout), cwd=out.parent)
    made = list(out.iterdir())
    return made[0] if len(made) == 1 else out


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The command's stdout; its whole output in the error if it fails."""
    result = subprocess.run(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-6000:]}"
    return result.stdout
