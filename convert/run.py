"""Official weights -> shards, top to bottom.

open_source   headers, index, config           no weights are read, nothing is written
match         every official tensor used once  or one error that lists all that is wrong
make_plan     files, offsets, sizes             pure
identify      which checkpoint this is          a second of sampling, see checkpoint/identity.py
for file:     read -> expand or quantise -> hash, write      pipeline.py, bounded memory
              temporary name -> on disk -> final name -> journal
manifest      last: its presence means "complete"

A finished conversion is repaired: every byte of it is held against its digests, and files that don't agree
are made again, those alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dsv4_mlx.checkpoint.files import InFile, OutFile
from dsv4_mlx.checkpoint.identity import identity_of
from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.checkpoint.manifest import Manifest, OtherFormat, read_manifest
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.source import Source, open_source
from dsv4_mlx.convert import folder
from dsv4_mlx.convert.conversion_plan import ConversionPlan, FilePlan, make_plan
from dsv4_mlx.convert.journal import Journal, Task
from dsv4_mlx.convert.pipeline import BLOCK, Streamer, check_block
from dsv4_mlx.convert.recipe import RECIPES, find_recipe
from dsv4_mlx.convert.shards import LocalShards, ShardSource
from dsv4_mlx.convert.steps import steps_for
from dsv4_mlx.convert.summary import (
    Effort,
    Status,
    Summary,
    build_manifest,
    digest_keys,
    known_digests,
    summarise,
)
from dsv4_mlx.convert.verify import contents
from dsv4_mlx.errors import InputError

# bytes done, bytes in all, file being written; no file while one is checked
Progress = Callable[[int, int, str], None]


def convert(
    source: Path,
    target: Path,
    recipe: str = "native",
    *,
    resume: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
    block: int = BLOCK,
) -> Summary:
    """Convert the official checkpoint `source` into the new folder `target`.

    Without `resume` the target must be absent or empty. With it, an unfinished conversion of the same source
    and recipe is continued, a finished one is checked and what is damaged made again (status "repaired", or
    "nothing to do"), and an absent or empty target is started. `repair` is for a finished one only, whose
    manifest may be missing.

    Bad input (InputError, UsageError) that is found before the first byte changes nothing. Bad weights found
    while reading remove the whole conversion, what an earlier run wrote included: repaired, the source is
    another source. A machine fault (MachineError) or Ctrl-C leaves a target that `resume` continues. `block`
    bounds memory: it is the number of bytes handled at a time.
    """
    find_recipe(recipe)
    check_block(block)
    folder.check_place(source, target)
    return convert_from(
        LocalShards(open_source(source)),
        target,
        recipe,
        resume=resume,
        repair=repair,
        progress=progress,
        block=block,
    )


def convert_from(
    shards: ShardSource,
    target: Path,
    recipe: str = "native",
    *,
    resume: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
    block: int = BLOCK,
) -> Summary:
    """As convert, from shards that may still be on their way."""
    started = time.monotonic()
    official = shards.source
    table = match(official)
    plan = make_plan(table, find_recipe(recipe), lambda weight: official.entry(weight.name).dtype)
    task = Task(shards.facts["identity"], recipe)

    folder.check_sizes(target, {file.name: file.size for file in plan.files})
    folder.refuse_if_locked(target)
    _admit(target, plan, task, resume, repair)
    effort = Effort()
    with folder.writing(target, lambda: plan.bytes - effort.kept_bytes - effort.finished_bytes):
        state = _held(target, plan, shards, task, resume, repair, progress, block, effort)
    statuses: dict[str, Status] = {"new": "converted", "unfinished": "resumed"}
    status = statuses.get(state, "repaired" if effort.repaired else "nothing to do")
    return summarise(status, plan, table, official, target, time.monotonic() - started, effort)


def _held(
    target: Path, plan: ConversionPlan, shards: ShardSource, task: Task, resume: bool, repair: bool,
    progress: Progress | None, block: int, effort: Effort,
) -> folder.State:  # fmt: skip
    """All that happens while the target is ours; the state it was in. Raises OSError too."""
    made = folder.create(target)
    try:
        with folder.locked(target):
            state = _admit(target, plan, task, resume, repair)  # again, now that nobody else can change it
            if state == "finished":
                _repair(target, plan, shards, progress, block, effort)
            else:
                _write_all(target, plan, shards, task, progress, block, effort)
    except BaseException:
        if made:
            with suppress(OSError):  # goes only if it is empty
                target.rmdir()
        raise
    return state


def _admit(target: Path, plan: ConversionPlan, task: Task, resume: bool, repair: bool) -> folder.State:
    """The target's state, if this conversion may go on from it. Raises InputError."""
    state = folder.state_of(target)
    if repair and state == "foreign" and any(_of_size(target, file) for file in plan.files):
        state = "finished"  # the manifest itself is lost
    if repair and state != "finished":
        found = f"holds a conversion that is {state}" if state == "unfinished" else "holds no conversion"
        way = "continue it with --resume" if state == "unfinished" else "convert without --repair"
        raise InputError(f"there is nothing to repair: the target {found}", where=target, next=way)
    if state == "foreign":
        raise InputError("the target is not empty", where=target, next="give a new or empty folder")
    if not (resume or repair) and state != "new":
        way = (
            "--repair checks it; or give another target"
            if state == "finished"
            else "continue it with --resume"
        )
        raise InputError(f"the target holds a conversion that is {state}", where=target, next=way)
    if state == "finished":
        _check_finished(target, plan, task, repair)
    if state == "unfinished":
        begun = Journal(target).task()
        other = begun and task.differs(begun)
        if other:
            raise InputError(
                f"the target holds an unfinished conversion of {other}",
                where=target,
                next="give another target, or delete this one and convert again",
            )
    return state


def _check_finished(target: Path, plan: ConversionPlan, task: Task, repair: bool) -> None:
    """Raises InputError unless `target` is the finished conversion that `task` would make, damaged or not."""
    try:
        manifest = _manifest(target)
    except OtherFormat:
        if not repair:
            raise
        manifest = None
    facts = {} if manifest is None else manifest.source
    sound = (
        manifest is not None and facts.get("identity") == identity_of(facts) and manifest.recipe in RECIPES
    )
    if manifest is not None and sound:
        other = task.differs(Task(str(facts["identity"]), manifest.recipe, manifest.format))
    else:  # nothing it says of itself counts
        other = None if any(_of_size(target, file) for file in plan.files) else "another recipe or source"
    if other:
        raise InputError(
            f"the target holds a finished conversion of {other}",
            where=target,
            next="give its own source and --recipe, or another target",
        )


def _manifest(target: Path) -> Manifest | None:
    """None for one that is missing or damaged. Raises OtherFormat."""
    try:
        return read_manifest(target)
    except OtherFormat:
        raise
    except InputError:
        return None


def _repair(
    target: Path, plan: ConversionPlan, shards: ShardSource, progress: Progress | None, block: int,
    effort: Effort,
) -> None:  # fmt: skip
    """Make again what is not what the manifest says, and the manifest where it is not what was made.

    A file that looks damaged may be whole and its digest wrong: it is held against the source, byte by byte.
    Raises InputError for a source that doesn't give what the manifest says.
    """
    source, manifest = shards.source, None
    with suppress(OtherFormat):
        manifest = _manifest(target)
    _tidy(target, plan)
    digests = known_digests(plan, manifest)
    made_by = {} if manifest is None else {"made_by": manifest.made_by}
    blank = {file.name: dict.fromkeys(digest_keys(file), "") for file in plan.files}
    candidate = build_manifest(plan, source, shards.facts, blank | digests, **made_by)
    unsound = {file.name for file in plan.files if not _starts_right(target, file)}
    unknown = {file.name for file in plan.files} - digests.keys()
    report = None if progress is None else lambda done, total, file: progress(done, total, "")
    damage = contents(target, None, plan, candidate, unsound | unknown, {}, report, block)
    damaged = unsound | {part.file for part in damage}
    folder.check_space(target, max((file.size for file in plan.files if file.name in damaged), default=0))

    remade = [name for name, text in source.texts.items() if _write_text(target / name, text)]
    todo = [file for file in plan.files if file.name in damaged | unknown]
    total = sum(file.size for file in todo)

    def advance(count: int) -> None:
        effort.bytes += count
        if progress is not None:
            progress(min(effort.bytes, total), total, file.name)

    shards.begin(plan, {file.name for file in plan.files} - {file.name for file in todo})
    with shards.reader() as reader, Streamer(reader, block) as streamer:
        for file in todo:
            found: dict[str, str] = {}
            same = False
            if file.name not in unsound:
                found, same = _compared(target, file, source, streamer)
            if not same:
                found = _write_file(target, file, source, streamer, advance, digests.get(file.name))
                remade.append(file.name)
            digests[file.name] = found
            shards.finished(file.name)
        reader.unchanged()
    made = build_manifest(plan, source, shards.facts, digests, **made_by).to_json().encode()
    if _write_text(target / MANIFEST, made):
        remade.append(MANIFEST)
    effort.repaired = tuple(remade)


def _write_text(path: Path, text: bytes) -> bool:
    """Whether the file had to be written: it was missing or another. Raises OSError."""
    with suppress(OSError):
        if path.is_file() and path.read_bytes() == text:
            return False
    with folder.finished_file(path) as out:
        out.write(text, 0)
    return True


def _starts_right(target: Path, file: FilePlan) -> bool:
    """Whether size and header are the planned ones."""
    try:
        with (target / file.name).open("rb") as opened:
            return _of_size(target, file) and opened.read(len(file.header)) == file.header
    except OSError:
        return False


def _of_size(target: Path, file: FilePlan) -> bool:
    path = target / file.name
    return path.is_file() and path.stat().st_size == file.size


class _Against(OutFile):
    """Takes what would be written, and looks whether it is there already."""

    def __init__(self, path: Path) -> None:
        self.file, self.same = InFile(path), True

    def write(self, data: bytes | memoryview, offset: int) -> None:
        found = memoryview(bytearray(len(data)))
        self.file.read(offset, found)
        self.same = self.same and found == data

    def close(self) -> None:
        self.file.close()


def _compared(
    target: Path, file: FilePlan, source: Source, streamer: Streamer
) -> tuple[dict[str, str], bool]:
    """A file's digests as the source has them, and whether its bytes are those."""
    out = _Against(target / file.name)
    try:
        return streamer.run(steps_for(file, source, streamer.block), out, lambda count: None), out.same
    finally:
        out.close()


def _write_all(
    target: Path, plan: ConversionPlan, shards: ShardSource, task: Task,
    progress: Progress | None, block: int, effort: Effort,
) -> None:  # fmt: skip
    """Everything from the first byte to the manifest. Bad input removes what was written."""
    try:
        _write_files(target, plan, shards, task, progress, block, effort)
        manifest = build_manifest(plan, shards.source, shards.facts, Journal(target).finished())
        with folder.finished_file(target / MANIFEST) as out:
            out.write(manifest.to_json().encode(), 0)
        _tidy(target, plan)
    except InputError:
        _discard(target, plan, shards.source)
        raise


def _write_files(
    target: Path, plan: ConversionPlan, shards: ShardSource, task: Task,
    progress: Progress | None, block: int, effort: Effort,
) -> None:  # fmt: skip
    journal, source = Journal(target), shards.source
    _tidy(target, plan, keep_journal=True)
    finished = journal.finished()
    kept = {file.name for file in plan.files if _complete(target, file, finished)}
    effort.kept_bytes = sum(file.size for file in plan.files if file.name in kept)
    folder.check_space(target, plan.bytes - effort.kept_bytes)
    if journal.task() is None:
        journal.start(task)
    for name, text in source.texts.items():
        with folder.finished_file(target / name) as out:
            out.write(text, 0)

    def advance(count: int) -> None:
        effort.bytes += count
        if progress is not None:
            progress(effort.kept_bytes + effort.bytes, plan.bytes, file.name)

    shards.begin(plan, kept)
    with shards.reader() as reader, Streamer(reader, block) as streamer:
        for file in plan.files:
            if file.name not in kept:
                digests = _write_file(target, file, source, streamer, advance)
                journal.add(file.name, digests)
                effort.finished_bytes += file.size
                shards.finished(file.name)
        reader.unchanged()
        effort.hash_seconds, effort.write_seconds = streamer.hash_seconds, streamer.write_seconds


def _write_file(
    target: Path, file: FilePlan, source: Source, streamer: Streamer, advance: Callable[[int], None],
    expected: dict[str, str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Its digests. Raises InputError, the file as it was, where they are not the expected ones."""
    with folder.finished_file(target / file.name) as out:
        out.write(file.header, 0)
        advance(len(file.header))
        found = streamer.run(steps_for(file, source, streamer.block), out, advance)
        if expected is not None and found != expected:
            raise InputError(
                f"{file.name} can't be repaired: the source doesn't give what was converted: damaged too",
                where=source.folder,
                next="dsv4-mlx verify SOURCE, or download it again with --verify",
            )
        return found


def _complete(target: Path, file: FilePlan, finished: dict[str, dict[str, str]]) -> bool:
    return file.name in finished and _of_size(target, file)


def _tidy(target: Path, plan: ConversionPlan, keep_journal: bool = False) -> None:
    """Remove what a killed run left behind: temporary files and, once finished, the journal."""
    for name in (*(file.name for file in plan.files), MANIFEST):
        (target / (name + folder.PART)).unlink(missing_ok=True)
    if not keep_journal:
        (target / folder.JOURNAL).unlink(missing_ok=True)


def _discard(target: Path, plan: ConversionPlan, source: Source) -> None:
    """Remove this conversion's files: a repaired source is another source, so they could not be continued."""
    for name in (*(file.name for file in plan.files), *source.texts):
        (target / name).unlink(missing_ok=True)
        (target / (name + folder.PART)).unlink(missing_ok=True)
    (target / folder.JOURNAL).unlink(missing_ok=True)
