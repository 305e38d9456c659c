"""Are the files the ones that were written, and the numbers in config.json the ones of the release?"""

from __future__ import annotations

from pathlib import Path

from dsv4_mlx.checkpoint.identity import downloaded
from dsv4_mlx.checkpoint.manifest import OFFICIAL, Manifest
from dsv4_mlx.config import ModelConfig, Yarn
from dsv4_mlx.convert.verify import verify, verify_official
from dsv4_mlx.errors import Progress
from dsv4_mlx.evaluation.report import AcceptanceStep, Bar

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


def files(folder: Path, manifest: Manifest, against: Path | None, bar: Bar) -> AcceptanceStep:
    """Every byte of a converted folder against its digests and, if given, the checkpoint it was made from.

    An official folder is held against the digests that the Hub gave for its files when they were downloaded.
    """
    if manifest.recipe == OFFICIAL:
        with bar("files", "bytes") as show:
            return _official(folder, manifest, show)
    with bar("files", "bytes") as show:
        report = verify(folder, against, progress=lambda done, total, file: show(done, total))
    found = tuple(f"{d.file} {d.tensor}: {d.what}".replace(" :", ":") for d in report.damage)
    told = "every byte is the one that was written"
    if against is not None:
        told = "every value is the official one" if report.lossless else "compared with the official values"
    figures = {"files": report.files, "bytes": report.bytes, "against_source": against is not None}
    return AcceptanceStep("files", report.ok, found, figures, (told,) if report.ok else ())


def _official(folder: Path, manifest: Manifest, progress: Progress) -> AcceptanceStep:
    shards = sum(name.endswith(".safetensors") for name in manifest.files)
    missing = f"of {{}} of {shards} files the Hub's digests are not here; downloading keeps them"
    if not downloaded(folder):
        figures: dict[str, object] = {"files": 0, "bytes": 0, "against_source": False}
        return AcceptanceStep("files", None, (missing.format(shards),), figures)
    report = verify_official(folder, lambda done, total, file: progress(done, total))
    found = tuple(f"{d.file}: {d.what}; dsv4-mlx download ORG/NAME FOLDER --verify" for d in report.damage)
    figures = {"files": report.files, "bytes": report.bytes, "against_source": False}
    if found:
        return AcceptanceStep("files", False, found, figures)
    if report.unknown:
        return AcceptanceStep("files", None, (missing.format(report.unknown),), figures)
    return AcceptanceStep("files", True, (), figures, ("every byte is the one that the Hub lists",))


def numbers(config: ModelConfig) -> AcceptanceStep:
    """config.json against the numbers that all releases share."""
    found = tuple(
        f"{name} is {getattr(config, name)}, every release has {value}"
        for name, value in RELEASED.items()
        if getattr(config, name) != value
    )
    return AcceptanceStep("numbers", not found, found, {"compared": len(RELEASED)})
