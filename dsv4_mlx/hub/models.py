"""MODEL and SOURCE as given -> folders on this machine, the demo's among them. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_mlx.errors import InputError, MachineError, Progress, UsageError
from dsv4_mlx.machine.support import at_home, cache_folder
from dsv4_mlx.other_models import gguf

if TYPE_CHECKING:
    from dsv4_mlx.convert.summary import Summary

RECORD = "demo.json"  # the digests of what the demo has made, and of what it was made from
MODEL_ID = "dsv4-demo"
SHIPPED = Path(__file__).resolve().parent.parent / "demo"  # the trained checkpoint, official layout


@dataclass(frozen=True)
class Demo:
    """Where the demonstration's files are, and whether they were there already."""

    checkpoint: Path
    model: Path
    reused: bool


def model_folder(reference: str) -> Path:
    """MODEL as given -> the folder of a model, converted or official. Raises InputError, UsageError.

    A folder, a Hub id in the local cache, or `demo`, which is built when it isn't there.
    """
    if not reference:
        raise UsageError(
            "MODEL is empty", next="give a folder, or `demo`; dsv4-mlx models lists those on this disk"
        )
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
    cached = _cached(reference)
    if cached is None:
        raise not_here(reference, reference)
    return cached


def official_folder(reference: str) -> Path:
    """SOURCE as given -> a folder on this machine. Raises InputError."""
    folder = _no_gguf(at_home(reference))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{reference!r} is a file", next="give the folder that holds config.json")
    cached = _cached(reference) if _is_id(reference) else None
    if cached is None:
        raise not_here(reference if _is_id(reference) else "deepseek-ai/DeepSeek-V4-Flash", reference)
    return cached


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: str = "native",
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Convert an official checkpoint on this machine into the new folder `target`.

    source: a folder, or a Hub id already downloaded. resume: continue an unfinished conversion, or start one.
    `progress(done, total)` counts bytes. Raises UsageError, InputError, MachineError.
    """
    for name, value in (("source", source), ("target", target), ("recipe", recipe)):
        if not isinstance(value, str if name == "recipe" else str | os.PathLike) or not value:
            raise UsageError(f"{name} is {value!r}, expected a str{'' if name == 'recipe' else ' or a Path'}")
    from dsv4_mlx.convert.run import convert

    folder = Path(os.path.abspath(at_home(os.fspath(target))))
    return convert(
        official_folder(os.fspath(source)), folder, recipe, resume=resume, progress=_bytes_only(progress)
    )


def _bytes_only(progress: Progress | None) -> Callable[[int, int, str], None] | None:
    """What a conversion tells, without the file that it writes."""
    return None if progress is None else lambda done, total, file: progress(done, total)


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


def commands_for(repository: str) -> tuple[str, str]:
    """What to type for a model of the Hub: to run it as it is, or converted."""
    name, target = shlex.quote(repository), shlex.quote(short_name(repository))
    return (
        f"dsv4-mlx download {name} ~/models/{target}-official",
        f"dsv4-mlx convert {name} ~/models/{target} --delete-source",
    )


def short_name(repository: str) -> str:
    """What a folder for it is called."""
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


def not_here(repository: str, reference: str) -> InputError:
    """The refusal of a model that has to be fetched: it says what to type."""
    run, convert = commands_for(repository)
    return InputError(
        f"there is no folder {reference!r}, and no complete model of that name in the Hub's cache",
        next=f"{run}\n    or  {convert}",
    )


def build(folder: Path, progress: Progress | None = None) -> Demo:
    """Convert the shipped checkpoint into `folder`, or find that done and undamaged.

    `progress` counts bytes. Raises InputError rather than touch a folder of that name that it has not made.
    """
    model, record = folder / MODEL_ID, folder / RECORD
    if _intact(SHIPPED, model, record):
        return Demo(SHIPPED, model, reused=True)
    from dsv4_mlx.convert.run import convert

    try:
        _clear(folder, model)
        record.write_text("{}\n", encoding="utf-8")  # from here on the folder is ours to delete
        convert(SHIPPED, model, progress=_bytes_only(progress))
        record.write_text(json.dumps(_digests(SHIPPED, model), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"the demo can't be built here: {error.strerror}", where=folder, next="choose a folder with --dir"
        ) from None
    return Demo(SHIPPED, model, reused=False)


def _clear(folder: Path, old: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not old.exists():
        return
    if not (folder / RECORD).is_file():
        raise InputError(
            f"the demo would have to replace {old.name!r}, which it has not made",
            where=folder,
            next="choose another folder with --dir",
        )
    shutil.rmtree(old)


def _intact(checkpoint: Path, model: Path, record: Path) -> bool:
    """Whether every byte of both folders is what an earlier run has recorded."""
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        return bool(recorded) and bool(recorded == _digests(checkpoint, model))
    except (OSError, ValueError):
        return False


def _digests(checkpoint: Path, model: Path) -> dict[str, str]:
    found = {}
    for name, folder in (("official", checkpoint), ("converted", model)):
        for path in sorted(folder.rglob("*")):
            at = f"{name}/{path.relative_to(folder).as_posix()}"
            found[at] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
