"""The folder that is being written: who may write to it, what state it is in, and how files appear in it.

    absent, or nothing in it           new         a conversion may start
    a journal                          unfinished  only `resume` may continue
    a manifest                         finished    only `resume` may look; it finds nothing to do
    anything else                      foreign     refused

A file is written under a temporary name, forced to disk and renamed, so a name without `.part` always means
complete contents.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from dsv4_mlx.checkpoint.files import OutFile
from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.errors import DiskFull, InputError, MachineError
from dsv4_mlx.machine.disks import MARK, free_bytes, purgeable, to_disk, volume_of
from dsv4_mlx.machine.units import size

LOCK = ".convert.lock"
JOURNAL = ".convert.journal"
PART = ".part"
IGNORED = (LOCK, ".DS_Store", MARK)  # a lock without a journal is from a run that wrote nothing

RESUME = "the finished files are kept: run the same command with --resume"

State = Literal["new", "unfinished", "finished", "foreign"]


def check_place(source: Path, target: Path) -> None:
    """Raises InputError if the target is the source, lies in it, or is no folder."""
    real_source, real_target = source.resolve(), target.resolve()
    if real_target == real_source:
        raise InputError("source and target are the same folder", where=target, next="give another target")
    if real_source in real_target.parents:
        raise InputError("the target lies inside the source", where=target, next="give another target")
    if target.exists() and not target.is_dir():
        raise InputError("the target is a file, expected a folder", where=target, next="give another target")


def state_of(target: Path) -> State:
    """Raises InputError if the folder can't be listed."""
    try:
        names = {entry.name for entry in target.iterdir()} - set(IGNORED)
    except FileNotFoundError:
        return "new"
    except OSError as error:
        raise InputError(f"the target can't be used: {error.strerror or error}", where=target) from None
    if MANIFEST in names:
        return "finished"
    if JOURNAL in names:
        return "unfinished"
    return "foreign" if names else "new"


def create(target: Path) -> bool:
    """Make the folder if needed; whether it was made. Raises InputError; OSError where the disk is full."""
    if target.is_dir():
        return False
    try:
        target.mkdir(parents=True)
    except OSError as error:
        if no_room(error):
            raise
        raise InputError(
            f"the target can't be made: {error.strerror or error}",
            where=target,
            next="give a folder that you may write to",
        ) from None
    return True


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the folder for one conversion; the lock falls with the process, however it ends.

    Raises InputError that names the process which holds it already, or if the folder is not writable.
    """
    path = target / LOCK
    descriptor = _take(path, target)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # Removed while still held: whoever opened the old file sees in `_take` that it is gone.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def refuse_if_locked(target: Path) -> None:
    """Raises InputError if another conversion holds the folder. Creates nothing."""
    try:
        descriptor = os.open(target / LOCK, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            raise _busy(descriptor, target) from None
    finally:
        os.close(descriptor)


def _take(path: Path, target: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if no_room(error):
                raise
            raise InputError(
                f"the target can't be written to: {error.strerror or error}",
                where=target,
                next="give a folder that you may write to",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refusal = _busy(descriptor, target)
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                refusal = InputError(
                    f"the target's file system can't lock files ({error.strerror})",
                    where=target,
                    next="give a target on another disk",
                )
            raise refusal from None
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its owner removed it between our open and our lock


def _busy(descriptor: int, target: Path) -> InputError:
    owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return InputError(
        f"another conversion (process {owner}) is writing to this folder",
        where=target,
        next="wait for it, or give another target",
    )


@contextmanager
def finished_file(path: Path) -> Iterator[OutFile]:
    """New contents for `path`; when the block ends they are on disk under that name.

    If the block fails the temporary file is removed. Raises OSError.
    """
    part = path.with_name(path.name + PART)
    out = OutFile(part)
    try:
        yield out
        to_disk(out.descriptor)
    except BaseException:
        out.close()
        part.unlink(missing_ok=True)
        raise
    out.close()
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force names to disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        to_disk(descriptor)
    finally:
        os.close(descriptor)


def check_space(target: Path, needed: int) -> None:
    """Raises DiskFull if fewer than `needed` bytes are free."""
    free = free_bytes(target)
    if needed > free:
        raise DiskFull(
            f"the disk is too full: {size(needed)} are needed, {size(free)} are free{purgeable()}, "
            f"{size(needed - free)} are missing",
            where=target,
            next=f"free {size(needed - free)}, or give a target on another disk",
        )


def check_sizes(target: Path, files: Mapping[str, int]) -> None:
    """Raises InputError if the target's file system can't hold files (name -> bytes) as large as these."""
    volume = volume_of(target)
    limit = volume.largest_file if volume is not None else None
    name = max(files, key=lambda file: files[file], default="")
    if volume is not None and limit is not None and name and files[name] > limit:
        raise InputError(
            f"the target is on {volume.describe()}, whose files end at {size(limit)}; "
            f"{name} has {size(files[name])}",
            where=target,
            next="give a target on a disk with APFS or exFAT",
        )


def no_room(error: OSError) -> bool:
    """Whether the disk is full, or this user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(target: Path, left: Callable[[], int], then: str) -> DiskFull:
    """The error of a disk that has become full. `left()`: bytes still to be written; `then`: what to do."""
    try:
        missing = max(left() - free_bytes(target), 1)
    except OSError:
        missing = left()
    return DiskFull(
        f"the disk is full: {size(missing)} are missing to finish{purgeable()}",
        where=target,
        next=f"free {size(missing)}; {then}",
    )


@contextmanager
def writing(target: Path, left: Callable[[], int]) -> Iterator[None]:
    """Turn a failure to write into a MachineError; `left()` is how many bytes are still to be written."""
    try:
        yield
    except OSError as error:
        if no_room(error):
            raise disk_full(target, left, RESUME) from None
        if not target.is_dir():
            raise MachineError(
                "the target has vanished while it was written", where=target, next="convert again"
            ) from None
        raise MachineError(
            f"the target can't be written to: {error.strerror or error}", where=target, next=RESUME
        ) from None
