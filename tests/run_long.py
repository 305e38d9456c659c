"""Run the tests that take minutes and write what came out, each with date, commit and machine.

    python tests/run_long.py [FILE OR FOLDER ...]

Without arguments all of them, and the results are written anew. With arguments those tests only: their rows
are replaced, the others stay as they were, with the commit they were run at.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "LONG_RESULTS.md"
HEAD = """# The tests that take minutes

Written by `make test-long`. A run of some of them (`python tests/run_long.py tests/convert`) replaces their
rows and leaves the others.

| test | outcome | time | measured | date (UTC) | commit | machine |
|---|---|---|---|---|---|---|
"""


class Collected:
    """What pytest reports: a row per test."""

    def __init__(self, stamp: str) -> None:
        self.stamp = stamp
        self.rows: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            measured = "; ".join(f"{name} {value}" for name, value in report.user_properties)
            outcome = report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
            self.rows[report.nodeid] = f"{outcome} | {report.duration:.0f} s | {measured} | {self.stamp}"


def git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def kept_rows() -> dict[str, str]:
    """Rows of earlier runs by test."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    cells = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| `")]
    return {name.strip("`"): rest for name, rest in cells}


def main(parts: list[str]) -> int:
    commit = git("rev-parse", "--short=12", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no"):
        commit += " and changes that are not committed"
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    collected = Collected(f"{datetime.now(UTC):%Y-%m-%d %H:%M} | {commit} | {machine}")
    code = pytest.main(["-m", "long", *(parts or [str(ROOT / "tests")])], plugins=[collected])
    rows = (kept_rows() if parts else {}) | collected.rows
    text = "".join(f"| `{name}` | {rows[name]} |\n" for name in sorted(rows))
    RESULTS.write_text(HEAD + text, encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
