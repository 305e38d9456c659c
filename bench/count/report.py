"""What the figures mean on a Mac, as a table and a plot. All times here are predicted, none is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
DISPATCH_US = (2.4, 2.75)  # per dependent dispatch, reported on an M3 Ultra (mlx#4521)
COMMAND_BUFFER_US = 20.0  # same report
DISPATCHES_PER_BUFFER = 50  # of paths whose command buffers are not counted: MLX's own bound
BANDWIDTHS = (400, 546, 614, 819)  # GB/s: M3 Max and below, M4 Max, M5 Max, M3 Ultra
BOUNDS = {"MLX": "MLX's own", "set": "as set here"}
NAMES = {"reference": "reference", "kernels": "kernels", "mlx_vlm": "mlx-vlm"}


def launch_ms(figures: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds of launching alone, from the lower and the upper reported cost of a dispatch."""
    launches = figures["dispatches"] + figures["copies"]
    buffers = launches / DISPATCHES_PER_BUFFER * COMMAND_BUFFER_US
    low, high = ((launches * us + buffers) / 1000 for us in DISPATCH_US)
    return low, high


def total_bytes(figures: dict[str, Any]) -> int:
    return int(figures["bytes_weights"] + figures["bytes_cache"] + figures["bytes_other"])


def table(ledger: dict[str, Any]) -> str:
    """Markdown: counts, bytes, predicted launch time, and the roofline at four bandwidths."""
    bandwidths = " | ".join(f"{b} GB/s" for b in BANDWIDTHS)
    lines = [
        "| context | step | path | dispatches | copies | metadata | host syncs | weights GB | cache MB "
        f"| other MB | predicted launch ms | predicted ms at {bandwidths} |",
        "|---" * (11 + len(BANDWIDTHS)) + "|",
    ]
    for context, steps in ledger["contexts"].items():
        for step, paths in steps.items():
            lines += [_row(context, step, name, paths[name]) for name in NAMES if paths[name] is not None]
    detail, ours = ledger["detail"], ledger["detail_kernels"]
    lines += [
        "",
        "Launch: 2.4 to 2.75 us per dependent dispatch and 20 us per command buffer of 50, as reported for "
        "an M3 Ultra. Bandwidth columns: all bytes at that speed, nothing else. Predicted, not measured.",
        "",
        f"Reference, decode at {next(iter(ledger['contexts']))}: "
        f"{detail['dispatches_sinkhorn']} of the dispatches are the Sinkhorn iterations. A step that "
        f"completes a CSA group takes {detail['dispatches_closing_csa']}, one that completes an HCA "
        "group as well "
        f"{detail['dispatches_closing_csa_and_hca']}; the mean over 128 steps is "
        f"{detail['dispatches_mean']}. With numerics `exact`: {detail['dispatches_exact_numerics']}.",
        f"Kernels: {ours['dispatches_closing_csa']}, {ours['dispatches_closing_csa_and_hca']}, a mean of "
        f"{ours['dispatches_mean']}; `exact` {ours['dispatches_exact_numerics']}. "
        f"mlx-vlm: {ledger['decode']['mlx_vlm']['source']}.",
        "Recipe `4bit`, kernels, GB per decoded token: "
        + ", ".join(
            f"{total_bytes(f) / 1e9:.2f} at {context}" for context, f in ledger["decode_4bit"].items()
        )
        + ".",
        "",
        "| context | step | bounds | command buffers | operations of the largest | temporaries at once, MB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one['context']} | {one['step']} | {BOUNDS[one['switches']]} | {one['buffers']} "
            f"| {one['operations']} | {one['peak'] / 1e6:.0f} |"
            for one in ledger["command_buffers"]
        ),
    ]
    return "\n".join(lines)


def _row(context: str, step: str, path: str, figures: dict[str, Any]) -> str:
    low, high = launch_ms(figures)
    moved = total_bytes(figures)
    cells = [
        context, step, NAMES[path], figures["dispatches"], figures["copies"], figures["metadata"],
        figures["host_syncs"], f"{figures['bytes_weights'] / 1e9:.2f}", f"{figures['bytes_cache'] / 1e6:.1f}",
        f"{figures['bytes_other'] / 1e6:.0f}", f"{low:.1f}-{high:.1f}",
        *(f"{moved / (b * 1e9) * 1e3:.1f}" for b in BANDWIDTHS),
    ]  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def write(ledger: dict[str, Any]) -> None:
    """bench/results/ledger.json, ledger.md and ledger.svg."""
    RESULTS.mkdir(exist_ok=True)
    files = {
        "ledger.json": json.dumps(ledger, indent=1) + "\n",
        "ledger.md": table(ledger) + "\n",
        "ledger.svg": plot(ledger),
    }
    for name, text in files.items():
        (RESULTS / name).write_text(text, encoding="utf-8")


def plot(ledger: dict[str, Any]) -> str:
    """Predicted decode time on an M3 Ultra: moving bytes, and launching, per path and context."""
    rows = []
    for context, steps in ledger["contexts"].items():
        for name, label in NAMES.items():
            figures = steps["decode"][name]
            if figures is not None:
                moving = total_bytes(figures) / (BANDWIDTHS[-1] * 1e9) * 1e3
                rows.append((f"{int(context):,} {label}", moving, launch_ms(figures)[1]))
    width, left, bar, gap = 760, 190, 18, 10
    longest = max(moving + launching for _, moving, launching in rows)
    scale = (width - left - 90) / longest
    height = 70 + len(rows) * (bar + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="10" y="20" font-size="14">Predicted ms per decoded token, M3 Ultra (819 GB/s), '
        "not measured</text>",
        '<rect x="10" y="30" width="12" height="12" fill="#4477aa"/>'
        '<text x="28" y="41">bytes at bandwidth</text>',
        '<rect x="180" y="30" width="12" height="12" fill="#ee8866"/>'
        '<text x="198" y="41">launching dispatches at 2.75 us</text>',
    ]
    for index, (label, moving, launching) in enumerate(rows):
        y = 55 + index * (bar + gap)
        a, b = moving * scale, launching * scale
        parts += [
            f'<text x="10" y="{y + 13}">{label}</text>',
            f'<rect x="{left}" y="{y}" width="{a:.1f}" height="{bar}" fill="#4477aa"/>',
            f'<rect x="{left + a:.1f}" y="{y}" width="{b:.1f}" height="{bar}" fill="#ee8866"/>',
            f'<text x="{left + a + b + 6:.1f}" y="{y + 13}">{moving + launching:.1f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
