"""`python -m tests.pretend_mac GIB -- COMMAND ...`: a command of dsv4-mlx on such a Mac, and its notes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from pretend_mac import MACS, notes  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pretend_mac", description=__doc__)
    parser.add_argument("memory", type=int, choices=MACS, help="GiB")
    parser.add_argument("command", nargs="+", help="what follows dsv4-mlx")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        environment = MACS[options.memory].environment(record, Path(os.environ["HOME"]))
        command = [sys.executable, "-m", "dsv4_mlx", *options.command]
        code = subprocess.run(command, env=environment, check=False).returncode
        for note in notes(record):
            print(note.what, note.facts, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
