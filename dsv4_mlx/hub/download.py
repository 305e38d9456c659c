"""The two jobs: a folder filled from the Hub, and a conversion fed by it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from dsv4_mlx.checkpoint.identity import STATE
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.source import Source, read_config
from dsv4_mlx.convert.conversion_plan import ConversionPlan, make_plan
from dsv4_mlx.convert.folder import (
    RESUME,
    check_sizes,
    check_space,
    create,
    disk_full,
    locked,
    no_room,
    state_of,
)
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.convert.run import convert_from
from dsv4_mlx.convert.shards import shards_of
from dsv4_mlx.convert.summary import Summary
from dsv4_mlx.errors import DiskFull, InputError
from dsv4_mlx.hub.fetch import Fetcher
from dsv4_mlx.hub.headers import RemoteCheckpoint, texts
from dsv4_mlx.hub.prefetch import OPEN, PrefetchingShards
from dsv4_mlx.hub.ranges import write
from dsv4_mlx.hub.remote import Remote, Retry, look

SHARDS = ".safetensors"


@dataclass(frozen=True)
class DownloadStep:
    """How far a stage is: "looking" (shards), "checking" what is converted, "downloading" or "converting"
    (bytes).

    `shard`: the one that is fetched or converted; `file`: the one that is written.
    """

    stage: str
    done: int
    total: int
    shard: str = ""
    file: str = ""


Progress = Callable[[DownloadStep], None]


def download(
    repository: str,
    folder: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    retry: Retry | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> Source:
    """Fill `folder` with the official checkpoint; what is there and right is kept.

    verify: every byte that is there is read again, also of files that were checked when they came.

    Raises InputError for what is not a checkpoint this program runs, before any shard is fetched, and for
    bytes that are not those the Hub lists; MachineError for network and disk.
    """
    remote = look(repository, revision, endpoint=endpoint, retry=retry)
    check_sizes(folder, {name: file.bytes for name, file in remote.files.items()})
    fetcher = _fetcher(remote, folder, progress, again=verify)

    def left() -> int:
        return sum(fetcher.missing(name) for name in remote.files if name.endswith(SHARDS))

    with _room(folder, left, "the same command continues where it stopped"), _ours(folder):
        if verify:  # what is kept of the headers is fetched again as well
            for kept in [*(folder / STATE).glob("*.header"), *(folder / STATE).glob("*.sample")]:
                kept.unlink()
        official = _headers(fetcher, progress)
        check_space(folder, left())
        for shard in official.source.shards:
            fetcher.fetch(shard)
    return official.source


def convert_from_hub(
    repository: str,
    target: Path,
    recipe: str = "native",
    *,
    delete: bool = False,
    resume: bool = False,
    repair: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    retry: Retry | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Download and convert side by side. The official files come to `source_folder(target)`.

    delete: a shard goes as soon as all of it is converted, so that the disk holds the output and two shards
    at most; at the end the whole source folder goes. Otherwise as convert.convert; a run that was stopped is
    continued with `resume`, its download too. Of a finished conversion only what its repair needs is fetched.
    """
    find_recipe(recipe)
    folder = source_folder(target)
    if not (resume or repair) and state_of(target) != "new":
        raise InputError(
            "the target is not empty",
            where=target,
            next="continue or check it with --resume, or give another",
        )
    remote = look(repository, revision, endpoint=endpoint, retry=retry)
    check_sizes(folder, {name: file.bytes for name, file in remote.files.items()})
    fetcher = _fetcher(remote, folder, progress)
    needed = _Needed(fetcher, target, delete)
    with _room(target, needed, RESUME), _ours(folder):
        official = _headers(fetcher, progress)
        source = official.source
        needed.plan = make_plan(match(source), find_recipe(recipe), lambda w: source.entry(w.name).dtype)
        if state_of(target) == "new" or state_of(target) == "unfinished":
            check_space(target, needed())
        with PrefetchingShards(official, fetcher, delete=delete) as shards:
            summary = convert_from(
                shards,
                target,
                recipe,
                resume=resume,
                repair=repair,
                progress=None if progress is None else _converting(needed.plan, source, progress),
            )
        if delete:
            fetcher.forget()
    if delete:
        with suppress(OSError):  # something that was not fetched is in it
            folder.rmdir()
    return summary


def _converting(plan: ConversionPlan, source: Source, progress: Progress) -> Callable[[int, int, str], None]:
    last = {file.name: max(shards_of(file, source)) for file in plan.files}
    return lambda done, total, file: progress(
        DownloadStep("converting" if file else "checking", done, total, last.get(file, ""), file)
    )


def source_folder(target: Path) -> Path:
    """Where the official files come to: beside the target. Raises InputError for a target without a name."""
    if target.name in ("", ".."):
        raise InputError("the target has no name of its own", where=target, next="name the folder to make")
    return target.with_name(f"{target.name}.official")


class _Needed:
    """Bytes that a conversion from the Hub has still to write; without a plan yet, about that."""

    def __init__(self, fetcher: Fetcher, target: Path, delete: bool) -> None:
        self.fetcher, self.target, self.delete = fetcher, target, delete
        self.plan: ConversionPlan | None = None

    def __call__(self) -> int:
        fetcher, made = self.fetcher, 0
        names = [name for name in fetcher.remote.files if name.endswith(SHARDS)]
        output = self.plan.bytes if self.plan else sum(fetcher.file(name).bytes for name in names)
        if self.target.is_dir():
            made = sum(path.stat().st_size for path in self.target.glob("*.safetensors"))
        shards = sorted(fetcher.missing(name) for name in names)
        coming = sum(shards[-OPEN:]) if self.delete else sum(shards)
        return max(0, output - made) + coming


@contextmanager
def _ours(folder: Path) -> Iterator[None]:
    """Make and hold the folder that is filled: two downloads into one would spoil each other's files."""
    made = create(folder)
    try:
        with locked(folder):
            yield
    finally:
        if made:
            with suppress(OSError):  # goes only if it is empty
                folder.rmdir()


@contextmanager
def _room(place: Path, left: Callable[[], int], then: str) -> Iterator[None]:
    """A disk that becomes full, wherever that shows, is said with all that is missing."""
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise
        raise disk_full(place, left, then) from None
    except DiskFull as error:
        if "are needed" in error.message:  # found out before anything was written
            raise
        raise disk_full(place, left, then) from None


def _fetcher(remote: Remote, folder: Path, progress: Progress | None, *, again: bool = False) -> Fetcher:
    total = sum(file.bytes for file in remote.files.values() if file.name.endswith(SHARDS))
    done, lock = 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        if not fetcher.current.endswith(SHARDS):  # texts, a few megabytes
            return
        with lock:
            done += count
        if progress is not None:
            progress(DownloadStep("downloading", min(done, total), total, fetcher.current))

    fetcher = Fetcher(remote, folder, advance, again=again)
    return fetcher


def _headers(fetcher: Fetcher, progress: Progress | None) -> RemoteCheckpoint:
    remote, folder = fetcher.remote, fetcher.folder
    _same_commit(folder, remote.commit)
    texts(fetcher)
    read_config(folder)  # another model is refused before its shards are looked at
    looking = None if progress is None else lambda done, total: progress(DownloadStep("looking", done, total))
    official = RemoteCheckpoint(remote, folder, looking)
    match(official.source)
    return official


def _same_commit(folder: Path, commit: str) -> None:
    """What is kept of another commit's headers is forgotten; its shards are checked by digest anyway."""
    known = folder / STATE / "commit"
    if not known.is_file() or known.read_text(encoding="utf-8") != commit:
        shutil.rmtree(folder / STATE, ignore_errors=True)
        write(known, commit.encode())
