"""Official weights -> shards, top to bottom.

open_source   headers, index, config           no weights are read, nothing is written
match         every official tensor used once  or one error that lists all that is wrong
make_plan     files, offsets, sizes             pure
identify      which checkpoint this is          a second of sampling, see checkpoint/identity.py
for file:     read -> expand or quantise -> hash, write      pipeline.py, bounded memory
              temporary name -> on disk -> final name -> journal
manifest      last: its presence means "complete"
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.source import Source, open_source
from dsv4_mlx.convert import folder
from dsv4_mlx.convert.conversion_plan import ConversionPlan, FilePlan, make_plan
from dsv4_mlx.convert.journal import Journal, Task
from dsv4_mlx.convert.pipeline import BLOCK, Streamer, check_block
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.convert.shards import LocalShards, ShardSource
from dsv4_mlx.convert.steps import steps_for
from dsv4_mlx.convert.summary import Effort, Status, Summary, build_manifest, check_finished, summarise
from dsv4_mlx.errors import InputError

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, file being written


def convert(
    source: Path,
    target: Path,
    recipe: str = "native",
    *,
    resume: bool = False,
    progress: Progress | None = None,
    block: int = BLOCK,
) -> Summary:
    """Convert the official checkpoint `source` into the new folder `target`.

    Without `resume` the target must be absent or empty. With it, an unfinished conversion of the same source
    and recipe is continued, a finished one is left alone (status "nothing to do"), and an absent or empty
    target is started.

    Bad input (InputError, UsageError) that is found before the first byte changes nothing. Bad weights found
    while reading remove the whole conversion, what an earlier run wrote included: repaired, the source is
    another source. A machine fault (MachineError) or Ctrl-C leaves a target that `resume` continues. `block`
    bounds memory: it is the number of bytes handled at a time.
    """
    find_recipe(recipe)
    check_block(block)
    folder.check_place(source, target)
    return convert_from(
        LocalShards(open_source(source)), target, recipe, resume=resume, progress=progress, block=block
    )


def convert_from(
    shards: ShardSource,
    target: Path,
    recipe: str = "native",
    *,
    resume: bool = False,
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
    _admit(target, plan, task, resume)
    effort = Effort()
    with folder.writing(target, lambda: plan.bytes - effort.kept_bytes - effort.finished_bytes):
        state = _held(target, plan, shards, task, resume, progress, block, effort)
    statuses: dict[str, Status] = {"new": "converted", "unfinished": "resumed"}
    status = statuses.get(state, "nothing to do")
    return summarise(status, plan, table, official, target, time.monotonic() - started, effort)


def _held(
    target: Path, plan: ConversionPlan, shards: ShardSource, task: Task, resume: bool,
    progress: Progress | None, block: int, effort: Effort,
) -> folder.State:  # fmt: skip
    """All that happens while the target is ours; the state it was in. Raises OSError too."""
    made = folder.create(target)
    try:
        with folder.locked(target):
            state = _admit(target, plan, task, resume)  # again, now that nobody else can change it
            if state == "finished":
                _tidy(target, plan)
            else:
                _write_all(target, plan, shards, task, progress, block, effort)
    except BaseException:
        if made:
            with suppress(OSError):  # goes only if it is empty
                target.rmdir()
        raise
    return state


def _admit(target: Path, plan: ConversionPlan, task: Task, resume: bool) -> folder.State:
    """The target's state, if this conversion may go on from it. Raises InputError."""
    state = folder.state_of(target)
    if state == "foreign":
        raise InputError("the target is not empty", where=target, next="give a new or empty folder")
    if not resume and state != "new":
        way = "leave it, or give another target" if state == "finished" else "continue it with --resume"
        raise InputError(f"the target holds a conversion that is {state}", where=target, next=way)
    if state == "finished":
        check_finished(target, plan, task)
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
    target: Path, file: FilePlan, source: Source, streamer: Streamer, advance: Callable[[int], None]
) -> dict[str, str]:
    with folder.finished_file(target / file.name) as out:
        out.write(file.header, 0)
        advance(len(file.header))
        return streamer.run(steps_for(file, source, streamer.block), out, advance)


def _complete(target: Path, file: FilePlan, finished: dict[str, dict[str, str]]) -> bool:
    path = target / file.name
    return file.name in finished and path.is_file() and path.stat().st_size == file.size


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
