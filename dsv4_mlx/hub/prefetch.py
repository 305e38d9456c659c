"""Shards that come while others are converted. A reader waits for its shard; spent shards may go."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property, partial
from threading import Condition, Thread
from typing import Any

from dsv4_mlx.checkpoint.files import InFile
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.convert.conversion_plan import ConversionPlan
from dsv4_mlx.convert.shards import ADVICE, shards_of
from dsv4_mlx.hub.fetch import Fetcher
from dsv4_mlx.hub.headers import RemoteCheckpoint
from dsv4_mlx.hub.remote import FetchStopped

OPEN = 2  # with `delete`: shards on disk at once, the one being converted and the one being fetched
_GRACE = 3.0  # seconds for the download to see that it is to stop; a stalled connection may not let it


class PrefetchingShards:
    """A ShardSource, to be used as a context manager.

    delete: a shard goes when all of it is converted.
    """

    def __init__(self, official: RemoteCheckpoint, fetcher: Fetcher, *, delete: bool) -> None:
        self.official, self.fetcher, self.delete = official, fetcher, delete
        self.source = official.source
        self._users: dict[str, set[str]] = {}  # shard -> files of the plan that are still to be made from it
        self._order: list[str] = []
        self._ready: set[str] = set()
        self._wanted: set[str] = set()
        self._spent: set[str] = set()
        self._error: BaseException | None = None
        self._changed = Condition()
        self._thread: Thread | None = None
        self._reader: _Waiting | None = None

    def __enter__(self) -> PrefetchingShards:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        if self._thread is not None:
            self._thread.join(_GRACE)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return self.official.facts

    def begin(self, plan: ConversionPlan, kept: Set[str]) -> None:
        used = {shard for file in plan.files for shard in shards_of(file, self.source)}
        if not self.delete:  # what stays is the whole checkpoint, with the copies that are left out
            self._order += sorted(self.source.shards.keys() - used)
        for file in plan.files:
            for shard in sorted(shards_of(file, self.source)):
                if file.name not in kept:
                    self._users.setdefault(shard, set()).add(file.name)
                    if shard not in self._order:
                        self._order.append(shard)
        for shard in self.source.shards.keys() - set(self._order):  # converted by an earlier run
            self.fetcher.current = shard  # what is counted is this one's
            self.fetcher.advance(self.fetcher.file(shard).bytes)
        if self.delete:  # by a run that was stopped between the last file and this
            for shard in self.source.shards.keys() - self._users.keys():
                (self.source.folder / shard).unlink(missing_ok=True)
        self._thread = Thread(target=self._fetch_all, name="download", daemon=True)
        self._thread.start()

    def reader(self) -> SourceReader:
        self._reader = _Waiting(self)
        return self._reader

    def finished(self, file: str) -> None:
        with self._changed:
            for shard, users in self._users.items():
                users.discard(file)
                if not users and shard not in self._spent:
                    self._spent.add(shard)
                    self._drop(shard)
            self._changed.notify_all()

    def cancel(self) -> None:
        """Neither the download nor who waits for it goes on."""
        self.fetcher.stop.set()
        with self._changed:
            self._changed.notify_all()

    def wait(self, shard: str) -> None:
        """Until it is there. Raises what its download raised; Stopped."""
        with self._changed:
            self._wanted.add(shard)
            self._changed.notify_all()
            stop = self.fetcher.stop
            self._changed.wait_for(lambda: shard in self._ready or self._error is not None or stop.is_set())
            if shard not in self._ready:
                raise self._error or FetchStopped

    def _drop(self, shard: str) -> None:
        if self.delete:
            if self._reader is not None:
                self._reader.release(shard)  # an open file keeps its space
            (self.source.folder / shard).unlink(missing_ok=True)

    def _fetch_all(self) -> None:
        try:
            for shard in self._order:
                with self._changed:
                    self._changed.wait_for(partial(self._may, shard))
                self.fetcher.fetch(shard)
                with self._changed:
                    self._ready.add(shard)
                    self._changed.notify_all()
        except FetchStopped:
            pass
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _may(self, shard: str) -> bool:
        if self.fetcher.stop.is_set():
            raise FetchStopped
        here = len(self._ready - self._spent)
        return not self.delete or here < OPEN or shard in self._wanted


class _Waiting(SourceReader):
    def __init__(self, shards: PrefetchingShards) -> None:
        super().__init__(shards.source, ADVICE)
        self._shards = shards

    def opened(self, file: str) -> InFile:
        self._shards.wait(file)
        return super().opened(file)

    def cancel(self) -> None:
        self._shards.cancel()

    def release(self, file: str) -> None:
        """Close a shard that is not read again."""
        with self._opening:
            opened = self._files.pop(file, None)
        if opened is not None:
            opened.close()
