"""Run the tests that take minutes and write what came out, with date, commit and machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "LONG_RESULTS.md"


class Collected:
    """What pytest reports: one line per test."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            measured = "; ".join(f"{name} {value}" for name, value in report.user_properties)
            outcome = report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
            self.lines.append(f"| `{report.nodeid}` | {outcome} | {report.duration:.0f} s | {measured} |")


def git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def main() -> int:
    collected = Collected()
    code = pytest.main(["-m", "long", str(ROOT / "tests")], plugins=[collected])
    commit = git("rev-parse", "--short=12", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no") != "unknown":
        commit += " with changes that are not committed"
    text = [
        "# The tests that take minutes\n",
        "Written by `make test-long`; each run replaces it.\n",
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- commit: {commit}",
        f"- machine: {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        f"- result: {'all passed' if code == 0 else f'pytest exit code {int(code)}'}\n",
        "| test | outcome | time | measured |",
        "|---|---|---|---|",
        *collected.lines,
    ]
    RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
