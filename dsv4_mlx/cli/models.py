"""MODEL and SOURCE as given -> folders on this machine. What is on the Hub is fetched if the user says so."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import typer

from dsv4_mlx.cli.demo import build
from dsv4_mlx.cli.options import cache_folder
from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.machine.disks import at_home, free_bytes
from dsv4_mlx.machine.units import duration, size
from dsv4_mlx.other_models import gguf


def model_folder(reference: str) -> Path:
    """MODEL as given -> the folder of a model, converted or official. Raises InputError, UsageError.

    A folder, a Hub id, or `demo`, which is built when it isn't there. A model that isn't in the Hub's local
    cache either is offered to be downloaded, on a terminal.
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
    if not _is_id(reference):
        raise InputError(
            f"there is no folder {reference!r}",
            next="give the folder of a converted model or of an official checkpoint, or `demo`",
        )
    return _cached(reference) or _offered(reference)


def official_folder(reference: str) -> Path:
    """SOURCE as given -> a folder on this machine. Raises InputError."""
    folder = _no_gguf(at_home(reference))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{reference!r} is a file", next="give the folder that holds config.json")
    cached = _cached(reference) if _is_id(reference) else None
    if cached is None:
        raise _not_here(reference if _is_id(reference) else "deepseek-ai/DeepSeek-V4-Flash", reference)
    return cached


def _no_gguf(path: Path) -> Path:
    """The path itself. Raises InputError for GGUF."""
    refusal = gguf(path) if path.exists() else None
    if refusal is not None:
        raise refusal
    return path


def on_the_hub(reference: str) -> bool:
    """Whether SOURCE names a repository that has to be fetched: no folder, and not all of it is in the Hub's
    cache. What is there of it is not fetched again."""
    return _is_id(reference) and not Path(reference).exists() and _cached(reference) is None


def is_release(reference: str) -> bool:
    """Whether MODEL names a release whose config is shipped, and that is not on this machine."""
    from dsv4_mlx.planning.candidates import RELEASES

    return reference in RELEASES and on_the_hub(reference)


def commands_for(repository: str) -> tuple[str, str]:
    """What to type for a model of the Hub: to run it as it is, or converted."""
    name, target = shlex.quote(repository), shlex.quote(_short(repository))
    return (
        f"dsv4-mlx download {name} ~/models/{target}-official",
        f"dsv4-mlx convert {name} ~/models/{target} --delete-source",
    )


def _short(repository: str) -> str:
    return repository.rpartition("/")[2].lower().replace("deepseek-v4-", "")


def _is_id(reference: str) -> bool:
    return reference.count("/") == 1 and not reference.startswith((".", "/", "~")) and reference[-1] != "/"


def _cached(reference: str) -> Path | None:
    """The model in the Hub's cache, if all of it is there."""
    if not _is_id(reference):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        names = {"config.json", "tokenizer.json", *index["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return folder if (folder / "manifest.json").is_file() else None  # a conversion has no index
    return folder if all(isinstance(name, str) and (folder / name).exists() for name in names) else None


def _not_here(repository: str, reference: str) -> InputError:
    run, convert = commands_for(repository)
    return InputError(
        f"there is no folder {reference!r}, and no complete model of that name in the Hub's cache",
        next=f"{run}\n    or  {convert}",
    )


def _offered(repository: str) -> Path:
    """The model, downloaded now if a user at a terminal wants that. Raises InputError with what to type."""
    from huggingface_hub import constants

    refusal = _not_here(repository, repository)
    if constants.HF_HUB_OFFLINE or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise refusal
    from dsv4_mlx.cli.console import tell
    from dsv4_mlx.cli.disk_work import existing
    from dsv4_mlx.hub.remote import Retry, look

    tell(f"{repository} is not on this machine; asking the Hub")
    files = look(repository, retry=Retry(tell=tell)).files.values()
    target = at_home(f"~/models/{_short(repository)}-official")
    total, free = sum(file.bytes for file in files), free_bytes(existing(target))
    tell(
        f"it has {size(total)}; {size(free)} are free in {existing(target)}; "
        f"at 100 Mbit/s it takes {duration(total / (100e6 / 8))}"
    )
    if total > free or not typer.confirm(f"Download it to {target}?", default=False, err=True):
        raise refusal
    from dsv4_mlx.cli.download import fill

    tell(fill(repository, target))
    return target
