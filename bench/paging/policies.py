"""Policies over traces at 10, 25 and 50 % of the slots: hit rates, and what part of Belady's lead over LRU.

python -m bench.paging.policies bench/results/paging_policies.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.paging.rejected import Gaps, LruPolicy, Often
from bench.paging.replay import Make, hit_rate
from bench.paging.traces import SKEWED, Trace, drawn, load, scan
from dsv4_mlx.paging.policy import DuelPolicy

SHARES = (0.10, 0.25, 0.50)
WARM = 1000  # steps before anything is counted
TOKENS = 6000
DRIFTS = (300, 1000, 5000)  # how else long topics might last, in tokens
RECORDED = Path(__file__).parent.parent / "results" / "routing_demo.npz"
POLICIES: dict[str, Make] = {
    "lru": lambda experts, slots: LruPolicy(experts),
    "duel": lambda experts, slots: DuelPolicy(experts),
    "often": lambda experts, slots: Often(experts),
    "gaps": lambda experts, slots: Gaps(experts),
}


def traces() -> list[Trace]:
    found = [load(RECORDED), drawn(SKEWED, TOKENS, 3), scan(TOKENS)]
    for tokens in DRIFTS:
        other = drawn(replace(SKEWED, topic_tokens=tokens), TOKENS, 2)
        found.append(replace(other, name=f"skewed, topics of {tokens} tokens"))
    return found


def compare(trace: Trace, warm: int = WARM) -> dict[str, Any]:
    """Hit rates by share of slots; `gap` is (policy - LRU) / (Belady - LRU), None where none has a choice."""
    found = {}
    for share in SHARES:
        slots = max(1, round(share * trace.experts))
        rates = {name: hit_rate(trace, slots, make, warm) for name, make in POLICIES.items()}
        best = hit_rate(trace, slots, None, warm)
        room = best - rates["lru"]
        gap = {n: (rate - rates["lru"]) / room if room > 1e-6 else None for n, rate in rates.items()}
        found[f"{share:.0%}"] = {"slots": slots, "belady": best, **rates, "gap": gap}
    return found


def main() -> None:
    report = {}
    for trace in traces():
        report[trace.name] = compare(trace)
        for share, row in report[trace.name].items():
            cells = [f"{n} {row[n]:.1%}" for n in ("belady", *POLICIES)]
            gaps = [f"{n} {g:+.0%}" for n, g in row["gap"].items() if g is not None and n != "lru"]
            print(
                f"{trace.name:32} {share:>4} {row['slots']:4} slots  {', '.join(cells)} | {', '.join(gaps)}"
            )
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
