"""dsv4-mlx doctor"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import progress, table
from dsv4_mlx.cli.options import JsonOption
from dsv4_mlx.machine.support import cache_folder, verdicts_file
from dsv4_mlx.machine.units import size, speed

if TYPE_CHECKING:
    from dsv4_mlx.ops.selftest.verdicts import Verdict
    from dsv4_mlx.planning.doctor import Examination
    from dsv4_mlx.planning.fit import Fit
    from dsv4_mlx.planning.speed import Prediction


def doctor(
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where models are kept. Default: the cache.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine this machine: chip, memory, disk, every kernel, which model fits how, and what to change.

    It changes nothing: advice is printed. Kernels are checked again and the verdicts remembered.

    Example: dsv4-mlx doctor --dir /Volumes/Models
    """
    from dsv4_mlx.planning.candidates import converted_flash
    from dsv4_mlx.planning.doctor import examine
    from dsv4_mlx.planning.fit import budget_here

    models, config = converted_flash()
    with progress("checking kernels", "kernels", quiet=as_json) as show:
        found = examine(
            folder or cache_folder(), verdicts_file(), models, config, budget_here(), progress=show
        )
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        show_examination(found)


def show_examination(found: Examination) -> None:
    """For people, on stdout."""
    m = found.machine
    print(f"chip    {m.chip}, {m.cores} cores, {size(m.memory)} of memory")
    if m.gpu_limit is not None:
        setting = "the system's own" if not m.wired_limit_mb else f"iogpu.wired_limit_mb={m.wired_limit_mb}"
        print(f"GPU     may use {size(m.gpu_limit)} ({setting})")
    if found.wired is not None:
        last = "" if found.wired.last is None else f"; last time {size(found.wired.last)}"
        off = "; not at the next start: the last one ended badly" if found.wired.refused else ""
        print(f"wire    at most {size(found.wired.most)} of a model with --wire auto{last}{off}")
    print(f"system  {m.system}, MLX {m.mlx}, Python {m.python}")
    print(f"product MLX_ENABLE_TF32={found.tf32}: {_products(found.tf32)}")
    device = "GPU" if m.metal else "CPU"
    published = "" if found.published is None else f"; {speed(found.published)} published of this memory"
    print(f"copy    {speed(found.copy)} read and written by the {device}{published}")
    read = f"read at {speed(found.read)}" if found.read is not None else "read speed not measured"
    print(f"disk    {size(found.free)} free, {read} ({found.folder})")
    if found.kernels:
        table(
            "kernels",
            ("kernel", "verdict", "time", "reference", "moved"),
            [_kernel(v) for v in found.kernels],
        )
    held = f", of which other programs hold {size(found.taken)} now" if found.taken else ""
    title = f"V4-Flash in {size(found.limit)}{held}"
    table(
        title,
        ("recipe", "on disk", "runs", "needs at least", "context", "tokens/s predicted, not calibrated yet"),
        [_fit(f, p) for f, p in zip(found.fits, found.predictions, strict=True)],
    )
    for sentence in found.unchecked:
        print(f"not checked: {sentence}")
    for sentence in found.advice:
        print(f"advice: {sentence}")
    if not found.advice:
        print("advice: nothing to change")


def _products(setting: str) -> str:
    """What the switch means, read as MLX reads it: a number, else 0."""
    digits = setting.strip()
    on = digits.lstrip("+-").isdigit() and int(digits) != 0
    return "float32 products may keep 10 bits (M5)" if on else "float32 products are float32"


def _kernel(verdict: Verdict) -> tuple[str, ...]:
    if verdict.seconds is None or verdict.reference_seconds is None or verdict.bytes is None:
        return verdict.kernel, verdict.sentence(), "", "", ""
    moved = speed(verdict.bytes / verdict.seconds)
    times = f"{verdict.seconds * 1e6:.0f} us", f"{verdict.reference_seconds * 1e6:.0f} us"
    return verdict.kernel, verdict.sentence(), *times, moved


def _fit(fit: Fit, prediction: Prediction | None) -> tuple[str, ...]:
    runs: str = fit.placement
    if fit.placement == "paged":
        runs = f"paged, {fit.slots} experts of each layer in memory"
    context = f"{fit.context:,}" if fit.context else ""
    speeds = "-" if prediction is None else prediction.describe()
    return fit.name, size(fit.bytes), runs, size(fit.need), context, speeds
