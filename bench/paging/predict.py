"""What paging this model should cost on Macs: predicted, beside what others measured.

    python -m bench.paging.predict bench/results/paging_predictions

Writes OUT.json and OUT.md, and docs/paging-predictions.svg. Nothing here was measured on a Mac. The inputs:
the skewed trace, the ledger's counts of a decode step, published memory and disk speeds (the disk as a
range), 46 % of misses foreseen one layer earlier (reported for this model), and for the rest
`dsv4_mlx/planning/macs.py`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.paging.replay import from_cache, reads
from bench.paging.traces import SKEWED, Trace, drawn
from dsv4_mlx.paging.policy import DuelPolicy
from dsv4_mlx.planning.macs import EACH, EXPERTS, HASHED, LAYERS, RECORD, Mac
from dsv4_mlx.planning.timeline import Need, tokens_per_second

TOKENS, WARM = 1400, 900
FORESEEN = 0.46
LEDGER = Path(__file__).parent.parent / "results" / "ledger.json"
PICTURE = Path(__file__).parents[2] / "docs" / "paging-predictions.svg"
FORMS = {"reference": "reference path", "kernels": "with kernels"}


@dataclass(frozen=True)
class Row:
    """A machine whose disk brings `disk` to `fast` GB/s, and what was measured on one of its memory size."""

    mac: Mac
    fast: float
    others: str


# Memory speeds are Apple's. Disks: 4.2 GB/s cold was reported for an M4, 17.3 for an M5 Pro with many
# requests in flight; for the others 5 to 7 is taken.
ROWS = (
    Row(Mac("M5, 24 GB", 24, 153, 4.2), 7.0, "ds4 2.4-2.6 (Q2)"),
    Row(Mac("M4 Max, 36 GB", 36, 410, 4.2), 7.0, "ds4 3.0-3.4, 4.6 (Q2)"),
    Row(Mac("M5 Pro, 48 GB", 48, 307, 7.0), 17.3, "ssd-moe 4.5-5"),
    Row(Mac("M5 Pro, 64 GB", 64, 307, 7.0), 17.3, "Whallm 5.9-7.7 (23 GiB used), ds4 11.4-11.7 (Q2)"),
    Row(Mac("M3 Ultra, 96 GB", 96, 819, 5.0), 7.0, "none found"),
    Row(Mac("M5 Max, 128 GB", 128, 614, 7.0), 17.3, "ds4 11.9 cold, 19.3 warm"),
    Row(Mac("M2 Ultra, 192 GB", 192, 800, 5.0), 7.0, "none paged; resident MXFP4-class 26-32 on M3 Ultra"),
)


def needs(mac: Mac, trace: Trace) -> list[list[Need]]:
    """What each layer of each token needs, once warm."""
    layers = []
    for number in range(trace.layers):
        steps = trace.layer(number)
        known = number < HASHED
        found = reads(steps, mac.slots, DuelPolicy(EXPERTS), known=known)
        near = from_cache(found, mac.page_cache)
        layers.append(
            [
                Need(len(step) - len(read), len(read) - n, n, known, 0.0 if known else FORESEEN)
                for step, read, n in zip(steps, found, near, strict=True)
            ][WARM:]
        )
    return [list(token) for token in zip(*layers, strict=True)]


def predict(row: Row, trace: Trace, step: dict[str, dict[str, int]]) -> dict[str, Any]:
    mac = row.mac
    found: dict[str, Any] = {
        "machine": mac.name, "bandwidth": mac.bandwidth, "disk": [mac.disk, row.fast],
        "slots": mac.slots, "page_cache": mac.page_cache, "others": row.others,
    }  # fmt: skip
    if not mac.slots:
        return found | {"hits": None, "tokens_per_second": dict.fromkeys(FORMS)}
    tokens = needs(mac, trace)
    every = [need for token in tokens for need in token]
    wanted = EACH * len(every)
    found["hits"] = sum(need.hits for need in every) / wanted
    found["cached"] = sum(need.cached for need in every) / wanted
    found["disk_bytes_per_token"] = sum(need.read for need in every) * RECORD / len(tokens)
    found["tokens_per_second"] = {}
    for form in FORMS:
        moved = sum(step[form][f"bytes_{part}"] for part in ("weights", "cache", "other"))
        costs = mac.costs(step[form]["dispatches"], moved)
        found["tokens_per_second"][form] = [
            tokens_per_second(costs, replace(mac, disk=disk).disk_figures(), RECORD, tokens)
            for disk in (mac.disk, row.fast)
        ]
    return found


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| machine | memory GB/s | disk GB/s | slots a layer | in slots | in page cache | GB read a token | "
        "**predicted** tok/s, reference path | **predicted** tok/s, with kernels | measured by others |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        speeds = [
            "does not fit" if pair is None else f"{pair[0]:.1f}-{pair[1]:.1f}"
            for pair in row["tokens_per_second"].values()
        ]
        shares = ["-"] * 3 if row["hits"] is None else [
            f"{row['hits']:.0%}", f"{row['cached']:.0%}", f"{row['disk_bytes_per_token'] / 1e9:.2f}"
        ]  # fmt: skip
        cells = [
            row["machine"], f"{row['bandwidth']:.0f}", f"{row['disk'][0]:g}-{row['disk'][1]:g}",
            f"{row['slots']} of {EXPERTS}", *shares, *speeds, row["others"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(found: list[dict[str, Any]]) -> str:
    """Bars from the slow to the fast disk: the reference path below, kernels above."""
    top = max(p["tokens_per_second"]["kernels"][1] for p in found if p["hits"] is not None)
    scale, height = 420 / top, 34
    body = []
    for number, row in enumerate(found):
        y = 40 + number * height
        body.append(f'<text x="8" y="{y + 17}">{row["machine"]}</text>')
        for form, offset, colour in (("kernels", 2, "#4c78a8"), ("reference", 14, "#bab0ac")):
            pair = row["tokens_per_second"][form]
            if pair:
                x, width = 150 + pair[0] * scale, max(2.0, (pair[1] - pair[0]) * scale)
                body.append(
                    f'<rect x="{x:.1f}" y="{y + offset}" width="{width:.1f}" height="10" fill="{colour}"/>'
                )
    for tick in range(0, int(top) + 1, 5):
        x, bottom = 150 + tick * scale, 40 + len(found) * height
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="36" y2="{bottom}" stroke="#ddd"/>')
        body.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    title = "Predicted tokens per second, slow to fast disk: kernels (blue), reference path (grey)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{70 + len(found) * height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="20" font-size="13">{title}</text>{"".join(body)}</svg>\n'
    )


def main() -> None:
    out = Path(sys.argv[1])
    step = json.loads(LEDGER.read_text())["contexts"]["4096"]["decode"]
    trace = drawn(SKEWED, TOKENS, LAYERS)
    found = [predict(row, trace, step) for row in ROWS]
    out.with_suffix(".json").write_text(json.dumps({"rows": found}, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(found))
    PICTURE.write_text(plot(found))
    print(table(found))


if __name__ == "__main__":
    main()
