"""Are the files the ones that were written, and the numbers in config.json the ones of the release?"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dsv4_mlx.checkpoint.manifest import OFFICIAL, Manifest
from dsv4_mlx.config import ModelConfig, Yarn
from dsv4_mlx.convert.verify import verify
from dsv4_mlx.errors import MachineError, Progress
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
_SHA256 = re.compile("[0-9a-f]{64}")
_BLOCK = 8 << 20  # bytes


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
    known = {name: digest for name in manifest.files if (digest := hub_digest(folder, name))}
    total, done, found = sum(manifest.files[name] for name in known), 0, []
    for name, digest in known.items():
        if _sha256(folder / name) != digest:
            found.append(f"{name}: is not the file that the Hub lists; download it again")
        done += manifest.files[name]
        progress(done, total)
    figures = {"files": len(known), "bytes": total, "against_source": False}
    shards = [name for name in manifest.files if name.endswith(".safetensors")]
    without = len(set(shards) - known.keys())
    if found:
        return AcceptanceStep("files", False, tuple(found), figures)
    if without:
        why = f"of {without} of {len(shards)} files the Hub's digests are not here; downloading keeps them"
        return AcceptanceStep("files", None, (why,), figures)
    return AcceptanceStep("files", True, (), figures, ("every byte is the one that the Hub lists",))


def hub_digest(folder: Path, name: str) -> str | None:
    """The SHA-256 that the Hub gave for a file, as its client keeps it; None if it isn't there.

    In the Hub's cache a file is a link to one that is named by its digest; in a folder that was downloaded
    to, the digest is the second line of a small file.
    """
    path = folder / name
    if path.is_symlink() and _SHA256.fullmatch(path.resolve().name):
        return path.resolve().name
    try:
        lines = (folder / ".cache/huggingface/download" / f"{name}.metadata").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[1].strip() if len(lines) > 1 and _SHA256.fullmatch(lines[1].strip()) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise MachineError(f"the file can't be read: {error.strerror}", where=path) from None
    return digest.hexdigest()


def numbers(config: ModelConfig) -> AcceptanceStep:
    """config.json against the numbers that all releases share."""
    found = tuple(
        f"{name} is {getattr(config, name)}, every release has {value}"
        for name, value in RELEASED.items()
        if getattr(config, name) != value
    )
    return AcceptanceStep("numbers", not found, found, {"compared": len(RELEASED)})
