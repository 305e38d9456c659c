"""One file from the Hub into a folder: resumed, of the right size, of the right digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import tqdm

from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.hub.remote import Remote, RemoteFile

STATE = ".hub"  # in the folder that is filled: what is known of its files
_BLOCK = 8 << 20  # bytes hashed at a time

Advance = Callable[[int], None]


class Stopped(Exception):
    """The caller no longer wants the file."""


class Fetcher:
    """Fills a folder from one repository. `advance(n)`: n more bytes have come, or were there already."""

    def __init__(self, remote: Remote, folder: Path, advance: Advance, stop: Event) -> None:
        self.remote, self.folder, self.advance, self.stop = remote, folder, advance, stop

    def fetch(self, name: str) -> Path:
        """The file, checked. Raises InputError, MachineError, Stopped."""
        file, path = self.file(name), self.folder / name
        if self._known(file, path):
            self.advance(file.bytes)
            return path
        for again in (False, True):
            if again or not self._whole(file, path):
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
        came = 0
        advance, stop = self.advance, self.stop

        class Count(tqdm):  # type: ignore[misc]  # the library has no types here
            """Counts what comes; draws nothing."""

            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                nonlocal came
                if stop.is_set():
                    raise Stopped
                came += int(n or 0)
                advance(int(n or 0))

        def work() -> None:
            hf_hub_download(
                self.remote.repository,
                file.name,
                revision=self.remote.commit,
                endpoint=self.remote.endpoint,
                local_dir=self.folder,
                force_download=again,
                tqdm_class=Count,
            )

        try:
            # A file that comes whole again and again is no progress.
            what = f"{file.name} of {self.remote.repository}"
            self.remote.patience.over(what, work, lambda: min(came, file.bytes))
        except MachineError as error:
            if "the disk is full" in error.message:
                missing = file.bytes - came
                raise MachineError(
                    f"the disk is full: {missing / 1e6:,.1f} MB are missing for {file.name} alone",
                    where=self.folder,
                    next=f"free {missing / 1e6:,.1f} MB; the same command continues where it stopped",
                ) from None
            raise

    def _wrong(self, file: RemoteFile, path: Path) -> str | None:
        """What is wrong with it, if anything is."""
        size = path.stat().st_size if path.is_file() else 0
        if size != file.bytes:
            return f"{size} bytes instead of {file.bytes}"
        if file.sha256 is not None and self._digest(path) != file.sha256:
            return "another digest than the Hub lists"
        return None

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as opened:
            while block := opened.read(_BLOCK):
                if self.stop.is_set():
                    raise Stopped
                digest.update(block)
        return digest.hexdigest()

    def _mark(self, name: str) -> Path:
        return self.folder / STATE / f"{name}.ok"

    def _known(self, file: RemoteFile, path: Path) -> bool:
        """Whether this very file was checked before."""
        try:
            known = json.loads(self._mark(file.name).read_text(encoding="utf-8"))
            facts = path.stat()
        except (OSError, ValueError):
            return False
        stamp = [file.sha256, facts.st_size, facts.st_mtime_ns]
        return bool(known == stamp and facts.st_size == file.bytes)

    def _remember(self, file: RemoteFile, path: Path) -> None:
        facts = path.stat()
        write(self._mark(file.name), json.dumps([file.sha256, facts.st_size, facts.st_mtime_ns]).encode())


def write(path: Path, data: bytes) -> None:
    """New contents under that name. Not forced to disk: readers check them, and all can be fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)
