"""The ledger: what a step costs before any Mac has run it. `python bench/ledger.py --help`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.count import budget, figures, report  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/ledger.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    parser.add_argument(
        "--write", action="store_true", help="regenerate the table, the plot and the JSON in bench/results/"
    )
    parser.add_argument(
        "--write-budget", action="store_true", help="make today's figures the budget that tests hold"
    )
    parser.add_argument(
        "--record-peer", action="store_true", help="record mlx-vlm's figures (group `peer` installed)"
    )
    options = parser.parse_args(arguments)
    if options.record_peer:
        recorded = figures.peer_figures(figures.CONTEXTS)
        recorded["source"] = recorded["source"].removesuffix(", counted")
        figures.RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        return 0
    ledger = figures.ledger()
    if options.write_budget:
        budget.write(ledger)
    if options.write:
        report.write(ledger)
    if options.json:
        json.dump(ledger, sys.stdout, indent=1)
        print()
    else:
        print(report.table(ledger))
    return 0


if __name__ == "__main__":
    sys.exit(main())
