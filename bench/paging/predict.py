"""What this model should cost on Macs: predicted, beside what others measured.

    python -m bench.paging.predict bench/results/paging_predictions

Writes OUT.json and OUT.md, and docs/paging-predictions.svg. Nothing here was measured on a Mac. It is what
`dsv4-mlx plan` predicts (`dsv4_mlx/planning/speed.py`) for the table of Macs (`dsv4_mlx/machine/macs.py`),
with routing that repeats itself as in the simulator, for the slower and the faster disk.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.machine.macs import MACS, Mac, default_gpu_limit
from dsv4_mlx.machine.units import rate, size, speed
from dsv4_mlx.planning.candidates import Candidate, candidates, flash_config
from dsv4_mlx.planning.fit import budget_of_mac, fit
from dsv4_mlx.planning.speed import KERNELS, REFERENCES, Prediction, Speeds, predict, simulated

PICTURE = Path(__file__).parents[2] / "docs" / "paging-predictions.svg"
PATHS = {"reference": REFERENCES, "kernels": KERNELS}
# What was measured by others on a machine of that memory size.
OTHERS = {
    24: "ds4 2.4-2.6 (Q2)",
    36: "ds4 3.0-3.4, 4.6 (Q2)",
    48: "ssd-moe 4.5-5",
    64: "Whallm 5.9-7.7 (23 GiB used), ds4 11.4-11.7 (Q2)",
    96: "none found",
    128: "ds4 11.9 cold, 19.3 warm",
    192: "none paged",
    256: "MXFP4-class 26-32",
}


def predictions(mac: Mac, native: Candidate, config: ModelConfig) -> dict[str, Any]:
    """The lossless recipe on a Mac as it comes."""
    budget = budget_of_mac(mac.memory)
    found = fit(native.stored, config, budget)

    def at(disk: float, path: str) -> Prediction:
        speeds = Speeds(mac.bandwidth, disk)
        said = predict(native, found, config, speeds, budget.element, budget.page_cache, PATHS[path])
        assert said is not None, f"{mac.name} runs nothing"
        return said

    experts = native.stored.experts
    records = budget.page_cache / (experts.layers * experts.record_bytes) / experts.count
    hits, caught = simulated(found.slots / experts.count, records)
    slow, fast = (at(disk, "kernels") for disk in mac.disk)
    return {
        "machine": mac.name, "bandwidth": mac.bandwidth, "disk": list(mac.disk), "limit": budget.limit,
        "limit_macos_26": default_gpu_limit(mac.memory, macos=26), "slots": found.slots, "hits": round(hits,
        3), "cached": round((1 - hits) * caught, 3), "missed_bytes_per_token": slow.missed[1],
        "tokens_per_second": {name: rounded(*(at(disk, name).high for disk in mac.disk)) for name in PATHS},
        "bound": rounded(slow.bound, fast.bound), "prefill": rounded(slow.prefill, fast.prefill), "others":
        OTHERS[mac.gib],
    }  # fmt: skip


def rounded(*values: float | None) -> list[float]:
    """For a file that is the same wherever it was computed."""
    return [round(value, 2) for value in values if value is not None]


def table(found: list[dict[str, Any]]) -> str:
    header = (
        "machine", "memory speed", "disk GB/s", "GPU may use (macOS 26)", "slots a layer",
        "in slots", "in page cache", "**predicted** tok/s, reference path",
        "**predicted** tok/s, with kernels", "at most", "**predicted** prompt tok/s", "measured by others",
    )  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in found:
        rates = [*row["tokens_per_second"].values(), row["bound"], row["prefill"]]
        cells = [
            row["machine"], speed(row["bandwidth"]), "-".join(f"{disk / 1e9:g}" for disk in row["disk"]),
            f"{size(row['limit'])} ({size(row['limit_macos_26'])})", f"{row['slots']} of 256",
            f"{row['hits']:.0%}", f"{row['cached']:.0%}", *map(_span, rates), row["others"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _span(pair: list[float]) -> str:
    low, high = map(rate, pair)
    return low if low == high else f"{low}-{high}"


def plot(found: list[dict[str, Any]]) -> str:
    """Bars from the slow to the fast disk: the reference path below, kernels above."""
    top = max(row["tokens_per_second"]["kernels"][1] for row in found)
    scale, height = 420 / top, 34
    body = []
    for number, row in enumerate(found):
        y = 40 + number * height
        body.append(f'<text x="8" y="{y + 17}">{row["machine"]}</text>')
        for form, offset, colour in (("kernels", 2, "#4c78a8"), ("reference", 14, "#bab0ac")):
            pair = row["tokens_per_second"][form]
            x, width = 150 + pair[0] * scale, max(2.0, (pair[1] - pair[0]) * scale)
            body.append(
                f'<rect x="{x:.1f}" y="{y + offset}" width="{width:.1f}" height="10" fill="{colour}"/>'
            )
    for tick in range(0, int(top) + 1, 5):
        x, bottom = 150 + tick * scale, 40 + len(found) * height
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="36" y2="{bottom}" stroke="#ddd"/>')
        body.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    title = "Tokens/s predicted, not calibrated: slow to fast disk, kernels (blue), references (grey)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{70 + len(found) * height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="20" font-size="13">{title}</text>{"".join(body)}</svg>\n'
    )


def rows() -> list[dict[str, Any]]:
    config = flash_config()
    native = next(way for way in candidates(config) if way.name == "native")
    return [predictions(mac, native, config) for mac in MACS]


def main() -> None:
    out, found = Path(sys.argv[1]), rows()
    out.with_suffix(".json").write_text(json.dumps({"rows": found}, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(found))
    PICTURE.write_text(plot(found))
    print(table(found))


if __name__ == "__main__":
    main()
