"""The two jobs: a folder filled from the Hub, and a conversion fed by it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock

from dsv4_mlx.checkpoint.names import match
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.convert import convert_from
from dsv4_mlx.convert.finish import Summary
from dsv4_mlx.convert.plan import make_plan
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.convert.target import check_space, create, state_of
from dsv4_mlx.errors import InputError
from dsv4_mlx.hub.fetch import STATE, Fetcher
from dsv4_mlx.hub.outline import Outline, texts
from dsv4_mlx.hub.patience import Patience
from dsv4_mlx.hub.remote import look
from dsv4_mlx.hub.supply import OPEN, Coming

Progress = Callable[[str, int, int], None]  # "looking", "downloading" or "converting", done, in all


def download(
    repository: str,
    folder: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Source:
    """Fill `folder` with the official checkpoint; what is there and right is kept.

    Raises InputError for what is not a checkpoint this program runs, before any shard is fetched, and for
    bytes that are not those the Hub lists; MachineError for network and disk.
    """
    outline, fetcher = _outlined(repository, folder, revision, endpoint, patience, progress)
    shards = list(outline.source.shards)
    check_space(folder, sum(_missing(fetcher, shard) for shard in shards))
    for shard in shards:
        fetcher.fetch(shard)
    return outline.source


def convert_from_hub(
    repository: str,
    target: Path,
    recipe: str = "native",
    *,
    delete: bool = False,
    resume: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Download and convert side by side. The official files come to `source_folder(target)`.

    delete: a shard goes as soon as all of it is converted, so that the disk holds the output and two shards
    at most; at the end the whole source folder goes. Otherwise as convert.convert; a run that was stopped is
    continued with `resume`, its download too.
    """
    find_recipe(recipe)
    folder = source_folder(target)
    if not resume and state_of(target) != "new":
        raise InputError(
            "the target is not empty", where=target, next="continue with --resume, or give another"
        )
    stop = Event()
    outline, fetcher = _outlined(repository, folder, revision, endpoint, patience, progress, stop)
    if state_of(target) != "finished":
        _check_room(outline, fetcher, target, recipe, delete)
    with Coming(outline, fetcher, delete=delete) as supply:
        summary = convert_from(
            supply,
            target,
            recipe,
            resume=resume,
            progress=None if progress is None else lambda done, total, _: progress("converting", done, total),
        )
    if delete:
        shutil.rmtree(folder, ignore_errors=True)
    return summary


def source_folder(target: Path) -> Path:
    """Where the official files come to: beside the target."""
    return target.with_name(f"{target.name}.official")


def _outlined(
    repository: str, folder: Path, revision: str | None, endpoint: str | None,
    patience: Patience | None, progress: Progress | None, stop: Event | None = None,
) -> tuple[Outline, Fetcher]:  # fmt: skip
    remote = look(repository, revision, endpoint=endpoint, patience=patience)
    create(folder)
    _same_commit(folder, remote.commit)
    total = sum(file.bytes for file in remote.files.values() if file.name.endswith(".safetensors"))
    done, lock = 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
        if progress is not None:
            progress("downloading", min(done, total), total)

    fetcher = Fetcher(remote, folder, advance, stop or Event())
    texts(fetcher)
    looking = None if progress is None else lambda count, shards: progress("looking", count, shards)
    outline = Outline(remote, folder, looking)
    match(outline.source)
    done = 0
    return outline, fetcher


def _same_commit(folder: Path, commit: str) -> None:
    """What is kept of another commit's headers is forgotten; its shards are checked by digest anyway."""
    known = folder / STATE / "commit"
    if not known.is_file() or known.read_text(encoding="utf-8") != commit:
        shutil.rmtree(folder / STATE, ignore_errors=True)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(commit, encoding="utf-8")


def _check_room(outline: Outline, fetcher: Fetcher, target: Path, recipe: str, delete: bool) -> None:
    source = outline.source
    plan = make_plan(match(source), find_recipe(recipe), lambda weight: source.entry(weight.name).dtype)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors")) if target.is_dir() else 0
    shards = [_missing(fetcher, shard) for shard in source.shards]
    coming = sum(sorted(shards)[-OPEN:]) if delete else sum(shards)
    check_space(target, max(0, plan.bytes - written) + coming)


def _missing(fetcher: Fetcher, shard: str) -> int:
    path = fetcher.folder / shard
    here = path.stat().st_size if path.is_file() else 0
    return max(0, fetcher.file(shard).bytes - here)
