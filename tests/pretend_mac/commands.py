"""Command lines one after the other in this process: `python -m pretend_mac.commands`, and a JSON list."""

from __future__ import annotations

import json
import sys

from pretend_mac import system


def main() -> None:
    from dsv4_mlx.cli.main import run

    for line in json.loads(sys.argv[1]):
        print(f"$ dsv4-mlx {' '.join(line)}", flush=True)
        system.note("begun", command=line)
        system.note("ended", command=line, code=run(line))


if __name__ == "__main__":
    main()
