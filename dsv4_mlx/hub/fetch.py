"""One file from the Hub into a folder: resumed, of the right size, of the right digest."""

from __future__ import annotations

import errno
import json
import os
import shutil
from io import FileIO
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from dsv4_mlx.checkpoint.identity import STATE, stored_digest
from dsv4_mlx.convert.folder import no_room
from dsv4_mlx.errors import DiskFull, InputError, MachineError
from dsv4_mlx.hub.ranges import Advance, RangeDownload, bytes_here, write
from dsv4_mlx.hub.ranges import forget as forget_part
from dsv4_mlx.hub.rate import LEAST, keep
from dsv4_mlx.hub.remote import FetchStopped, Remote, RemoteFile
from dsv4_mlx.machine.disks import MARK

_BLOCK = 8 << 20  # bytes hashed at a time


class Fetcher:
    """Fills a folder from one repository. `advance(n)`: n more bytes have come, or were there already."""

    def __init__(self, remote: Remote, folder: Path, advance: Advance, *, again: bool = False) -> None:
        """again: files that were checked before are read once more."""
        self.remote, self.folder, self.advance, self.stop = remote, folder, advance, remote.stop
        self.again = again
        self.current = ""  # the file that was asked for last

    def fetch(self, name: str) -> Path:
        """The file, checked. Raises InputError, MachineError, DiskFull, Stopped."""
        self.current = name
        try:
            return self._fetch(name)
        except OSError as error:
            if no_room(error):
                raise DiskFull("the disk is full", where=self.folder) from None
            raise MachineError(
                f"{name} can't be written: {error.strerror or error}", where=error.filename or self.folder
            ) from None

    def _fetch(self, name: str) -> Path:
        file, path = self.file(name), self.folder / name
        if not self.again and self._known(file, path):
            self.advance(file.bytes)
            return path
        for again in (False, True):
            if again or not (self._whole(file, path) or self._cached(file, path)):
                self._download(file, path, again)
            wrong = self._wrong(file, path)
            if wrong is None:
                self._remember(file, path)
                return path
            path.unlink(missing_ok=True)
        raise InputError(
            f"{name} of {self.remote.repository} came twice with {wrong}",
            where=path,
            next="try again later, or another mirror: what is sent is not what the Hub lists",
        )

    def forget(self) -> None:
        """Delete what was fetched, and what this program and macOS put beside it."""
        for name in self.remote.files:
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / STATE, ignore_errors=True)
        for name in (".DS_Store", MARK):
            (self.folder / name).unlink(missing_ok=True)

    def missing(self, name: str) -> int:
        """Bytes of it that are not here yet."""
        file, path = self.file(name), self.folder / name
        there = path.stat().st_size if path.is_file() else 0
        return max(0, file.bytes - max(there, bytes_here(self._state(name, "part"), file)))

    def file(self, name: str) -> RemoteFile:
        """Raises InputError for one that the repository has not."""
        if name not in self.remote.files:
            raise InputError(
                f"{self.remote.repository} has no {name}", next="use a complete checkpoint's repository"
            )
        return self.remote.files[name]

    def _whole(self, file: RemoteFile, path: Path) -> bool:
        """Whether a file of the right size is there: from an earlier run, or copied by hand."""
        there = path.is_file() and path.stat().st_size == file.bytes
        if there:
            self.advance(file.bytes)
        return there

    def _download(self, file: RemoteFile, path: Path, again: bool) -> None:
        """Into a file of its own first, which a later run goes on with."""
        part = self._state(file.name, "part")
        part.parent.mkdir(parents=True, exist_ok=True)
        if again:
            forget_part(part)
        left = file.bytes - bytes_here(part, file)
        rate = RangeDownload(self.remote, file, self.advance).into(part)
        if left >= LEAST:
            keep(rate)
        os.replace(part, path)

    def _cached(self, file: RemoteFile, path: Path) -> bool:
        """Whether it lay in the library's cache, which is only read; here it gets a second name."""
        if file.sha256 is None:
            return False
        home = repo_folder_name(repo_id=self.remote.repository, repo_type="model")
        blob = Path(constants.HF_HUB_CACHE) / home / "blobs" / file.sha256
        try:
            if blob.stat().st_size != file.bytes:
                return False
            path.unlink(missing_ok=True)
            os.link(blob, path)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                return False
            return self._copied(blob, file, path)
        self.advance(file.bytes)
        return True

    def _copied(self, blob: Path, file: RemoteFile, path: Path) -> bool:
        part = self._state(file.name, "part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with blob.open("rb") as source, part.open("wb", buffering=0) as out:
            while block := source.read(_BLOCK):
                if self.stop.is_set():
                    raise FetchStopped
                self.advance(_write(out, block))
        os.replace(part, path)
        return True

    def _wrong(self, file: RemoteFile, path: Path) -> str | None:
        """What is wrong with it, if anything is."""
        size = path.stat().st_size if path.is_file() else 0
        if size != file.bytes:
            return f"{size} bytes instead of {file.bytes}"
        if file.digest is not None and stored_digest(path, file.digest, self._go) != file.digest:
            return "another digest than the Hub lists"
        return None

    def _go(self, count: int) -> None:
        if self.stop.is_set():
            raise FetchStopped

    def _state(self, name: str, kind: str) -> Path:
        return self.folder / STATE / f"{name}.{kind}"

    def _known(self, file: RemoteFile, path: Path) -> bool:
        """Whether this very file was checked before."""
        try:
            known = json.loads(self._state(file.name, "ok").read_text(encoding="utf-8"))
            facts = path.stat()
        except (OSError, ValueError):
            return False
        stamp = [file.digest, facts.st_size, facts.st_mtime_ns]
        return bool(known == stamp and facts.st_size == file.bytes)

    def _remember(self, file: RemoteFile, path: Path) -> None:
        facts = path.stat()
        forget_part(self._state(file.name, "part"))
        write(
            self._state(file.name, "ok"), json.dumps([file.digest, facts.st_size, facts.st_mtime_ns]).encode()
        )


def _write(out: FileIO, data: bytes) -> int:
    """All of it: the system may take less at a time."""
    done = 0
    while done < len(data):
        done += out.write(data[done:])
    return done
