"""Are the files the ones that were written, and the numbers in config.json the ones of the release?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsv4_mlx.acceptance.step import Step
from dsv4_mlx.config import ModelConfig, Yarn
from dsv4_mlx.convert import verify

# The same in every checkpoint of DeepSeek V4: what nobody retrains can't be another by accident only.
RELEASED: dict[str, object] = {
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "yarn": Yarn(16, 65536, 32, 1),
    "streams": 4,
    "sinkhorn_iterations": 20,
    "hc_eps": 1e-6,
    "norm_eps": 1e-6,
    "swiglu_limit": 10.0,
}


def files(folder: Path, converted: bool, progress: Callable[[int, int], None]) -> Step:
    """Every byte against the digests of the manifest. An official checkpoint has none."""
    if not converted:
        why = "an official checkpoint has no digests; `dsv4-mlx convert` reads and checks every value"
        return Step("files", None, (why,))
    report = verify(folder, progress=lambda done, total, file: progress(done, total))
    found = tuple(f"{d.file} {d.tensor}: {d.what}".replace(" :", ":") for d in report.damage)
    return Step("files", report.ok, found, {"files": report.files, "bytes": report.bytes})


def numbers(config: ModelConfig) -> Step:
    """config.json against the numbers that all releases share."""
    found = tuple(
        f"{name} is {getattr(config, name)}, every release has {value}"
        for name, value in RELEASED.items()
        if getattr(config, name) != value
    )
    return Step("numbers", not found, found, {"compared": len(RELEASED)})
