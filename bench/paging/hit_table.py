"""How many needed experts are in slots, and of the others how many in the page cache.

    python -m bench.paging.hit_table bench/results/paging_hit_table.json

The skewed trace through the policy that pages, for each number of slots; the page cache keeps the records
read last. `dsv4_mlx/planning/speed.py` holds the result and interpolates; a test compares them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.paging.replay import from_cache, reads
from bench.paging.traces import SKEWED, drawn
from dsv4_mlx.paging.policy import DuelPolicy
from dsv4_mlx.planning.speed import CACHED_RECORDS

EXPERTS, EACH, LAYERS, HASHED = 256, 6, 43, 3
TOKENS, WARM, EVERY = 1400, 900, 3  # every third layer is looked at, one of the hashed among them
SLOTS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 240)


def row(slots: int, layers: list[list[list[int]]], known: list[bool]) -> dict[str, Any]:
    needed = read = 0
    cached = dict.fromkeys(CACHED_RECORDS, 0)
    for steps, hashed in zip(layers, known, strict=True):
        found = reads(steps, slots, DuelPolicy(EXPERTS), known=hashed)
        needed += sum(map(len, steps[WARM:]))
        read += sum(map(len, found[WARM:]))
        for records in CACHED_RECORDS:
            cached[records] += sum(from_cache(found, records)[WARM:])
    return {
        "slots": slots,
        "hits": round(1 - read / needed, 3),
        "cached": [round(count / read, 3) for count in cached.values()],
    }


def main() -> None:
    trace = drawn(SKEWED, TOKENS, LAYERS)
    numbers = range(1, LAYERS, EVERY)
    layers = [trace.layer(number) for number in numbers]
    found = [row(slots, layers, [number < HASHED for number in numbers]) for slots in SLOTS]
    Path(sys.argv[1]).write_text(json.dumps({"experts": EXPERTS, "rows": found}, indent=1) + "\n")
    for one in found:
        print(one)


if __name__ == "__main__":
    main()
