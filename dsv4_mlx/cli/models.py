"""MODEL and SOURCE as given -> folders on this machine. Nothing is downloaded here."""

from __future__ import annotations

from pathlib import Path

from dsv4_mlx.cli.demo import build
from dsv4_mlx.cli.options import cache_folder
from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.machine.disks import at_home
from dsv4_mlx.other_models import gguf


def model_folder(reference: str) -> Path:
    """MODEL as given -> the folder of a model, converted or official. Raises InputError, UsageError.

    A folder, a Hub id in the local cache, or `demo`, which is built when it isn't there.
    """
    if not reference:
        raise UsageError("MODEL is empty", next="give a folder, or `demo`")
    folder = _no_gguf(at_home(reference))
    if reference == "demo" and not folder.exists():
        return build(cache_folder() / "demo").model
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{reference!r} is a file", next="give the folder that it lies in")
    cached = _cached(reference)
    if cached is None:
        raise InputError(
            f"there is no folder {reference!r}",
            next="give the folder of a converted model or of an official checkpoint, or `demo`",
        )
    return cached


def official_folder(reference: str) -> Path:
    """SOURCE as given -> a folder on this machine. Raises InputError."""
    folder = _no_gguf(at_home(reference))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{reference!r} is a file", next="give the folder that holds config.json")
    cached = _cached(reference)
    if cached is None:
        raise InputError(
            f"there is no folder {reference!r}, and no such model in the Hub's local cache",
            next="download it first: dsv4-mlx download deepseek-ai/DeepSeek-V4-Flash FOLDER",
        )
    return cached


def _no_gguf(path: Path) -> Path:
    """The path itself. Raises InputError for GGUF."""
    refusal = gguf(path) if path.exists() else None
    if refusal is not None:
        raise refusal
    return path


def on_the_hub(reference: str) -> bool:
    """Whether SOURCE names a repository that has to be fetched: none on this machine, and no folder."""
    return _is_id(reference) and not Path(reference).exists() and _cached(reference) is None


def _is_id(reference: str) -> bool:
    return reference.count("/") == 1 and not reference.startswith((".", "/", "~"))


def _cached(reference: str) -> Path | None:
    if not _is_id(reference):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
