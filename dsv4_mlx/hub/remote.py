"""What a repository holds at one commit, and small reads from its files.

Trying again: what passes by itself is waited for, what does not is said at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from dsv4_mlx.errors import DiskFull, Dsv4Error, InputError, MachineError

T = TypeVar("T")

# The library's HTTP client has changed its name before; its errors' base is found where the library has it.
_HTTP: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
_TOKEN = "log in with `hf auth login`, and accept the model's terms on its page"


@dataclass(frozen=True)
class Retry:
    """`tries` failures in a row without a byte of progress end it; pauses double, `first` to `longest`.

    A Hub that was not reached at all is given up after `unreached` failures: seconds. `tell` gets a line for
    the user before each pause.
    """

    tries: int = 8
    unreached: int = 3
    first: float = 1.0  # seconds
    longest: float = 60.0
    tell: Callable[[str], None] = lambda line: None

    def call(
        self,
        what: str,
        work: Callable[[], T],
        progress: Callable[[], int] = lambda: 0,
        stop: Event | None = None,
        *,
        first: bool = False,
    ) -> T:
        """The result of `work`. `progress` counts what has come so far; `stop` ends a pause, `work` sees why.
        `first`: nothing has been asked of the Hub before.

        Raises InputError for what the Hub refuses, MachineError for a full disk or a Hub that stays away.
        """
        failures, reached = 0, progress()
        while True:
            try:
                return work()
            except Dsv4Error:
                raise
            except (OSError, HFValidationError, _HTTP) as error:
                final = refusal(what, error)
                if final is not None:
                    raise final from None
                now = progress()
                failures = 1 if now > reached else failures + 1
                reached = max(reached, now)
                away = first and _status(error) is None
                if failures >= (min(self.unreached, self.tries) if away else self.tries):
                    raise MachineError(f"{what} can't be fetched: {_words(error)}", next=network()) from None
                pause = max(self._pause(failures), _asked(error))
                self.tell(f"{what}: {_words(error)}; trying again in {pause:.0f} s")
                (stop or Event()).wait(pause)

    def _pause(self, failures: int) -> float:
        return float(min(self.longest, self.first * 2 ** (failures - 1)))


def network() -> str:
    """What to look at when the Hub can't be reached: network, proxy, mirror, offline mode."""
    proxy = getproxies().get("https")
    proxied = f"the proxy {proxy}" if proxy else "HTTPS_PROXY if there is a proxy"
    return (
        f"check the network, {proxied}, or name a mirror with HF_ENDPOINT; the same command continues "
        "where it stopped. With HF_HUB_OFFLINE=1 only what is on this machine is used"
    )


def refusal(what: str, error: Exception) -> Dsv4Error | None:
    """The error for what trying again does not change; None for the rest."""
    match error:
        case GatedRepoError():
            return InputError(f"{what}: the Hub asks who you are", next=_TOKEN)
        case EntryNotFoundError():
            return InputError(f"{what} is not on the Hub", next="use a complete checkpoint's repository")
        case RepositoryNotFoundError() | RevisionNotFoundError() | HFValidationError():
            return InputError(f"{what}: the Hub has no such model or revision", next="check its name")
        case OfflineModeIsEnabled():
            return InputError(
                f"{what}: HF_HUB_OFFLINE is set, so nothing is asked of the Hub",
                next="unset it; or give the folder of a checkpoint that is complete",
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull("the disk is full", next="free some space; the same command continues")
        case OSError() if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return InputError(f"{what} can't be written: {error.strerror}", where=error.filename)
    status = _status(error)
    if status in (401, 403):
        return InputError(f"{what}: the Hub refuses it ({status})", next=_TOKEN)
    return InputError(f"{what}: the Hub answers {status}") if status in (400, 404, 410, 416) else None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _asked(error: Exception) -> float:
    """Seconds that the Hub asks to wait, two minutes at most."""
    text = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(120.0, float(text)) if text.isdigit() else 0.0


def _words(error: Exception) -> str:
    status = _status(error)
    return f"the Hub answers {status}" if status else (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class RemoteFile:
    """`blob`: the SHA-1 of git, which the Hub tells of a small file; of a large one it tells the SHA-256."""

    name: str
    bytes: int
    sha256: str | None
    blob: str | None = None

    @property
    def digest(self) -> str | None:
        """What its bytes are held against."""
        return self.sha256 or self.blob


class FetchStopped(Exception):
    """The caller no longer wants what is being fetched."""


class Remote:
    """A repository at one commit: what it holds does not change while it is fetched.

    `stop`, once set, ends reads, and pauses before the next try, with Stopped.
    """

    def __init__(
        self,
        repository: str,
        commit: str,
        files: dict[str, RemoteFile],
        endpoint: str | None,
        retry: Retry,
    ) -> None:
        self.repository, self.commit, self.files = repository, commit, files
        self.endpoint, self.retry = endpoint, retry
        self.stop = Event()
        self._places: dict[str, str] = {}
        self._lock = Lock()

    def read(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start` on. Raises InputError, MachineError."""

        def work() -> bytes:
            with self.stream(name, start, start + count) as (first, pieces):
                found = b"".join(pieces)[start - first :][:count]
            if len(found) != count:
                raise OSError(f"{len(found)} bytes came, {count} were asked for")
            return found

        return self.retry.call(f"{name} of {self.repository}", work, stop=self.stop)

    @contextmanager
    def stream(self, name: str, start: int, end: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the answer begins, and its pieces: `start`, or 0 from a server that knows no parts.

        Raises what the library raises; OSError for an address that has expired, which is then asked for anew.
        """
        if self.stop.is_set():
            raise FetchStopped
        place = self._place(name)
        own = urlsplit(place).netloc == urlsplit(self.endpoint or constants.ENDPOINT).netloc
        headers = build_hf_headers() if own else {}  # a token is for the Hub, not for where it stores
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream(
            "GET", place, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            if response.status_code in (401, 403):  # an address that was signed for an hour
                self._forget(name)
                raise OSError(f"the Hub answers {response.status_code}")
            hf_raise_for_status(response)
            yield _begin_of(response, start), response.iter_raw()

    def _place(self, name: str) -> str:
        with self._lock:
            place = self._places.get(name)
        if place is None:
            url = hf_hub_url(self.repository, name, revision=self.commit, endpoint=self.endpoint)
            place = get_hf_file_metadata(url, endpoint=self.endpoint).location
            with self._lock:
                self._places[name] = place
        return place

    def _forget(self, name: str) -> None:
        with self._lock:
            self._places.pop(name, None)


def _begin_of(response: Any, start: int) -> int:
    """Where the answer to a request from `start` on begins. Raises OSError for a part not asked for."""
    if response.status_code != 206:
        return 0
    part = response.headers.get("Content-Range", "")
    if part and not part.startswith(f"bytes {start}-"):
        raise OSError(f"{part!r} came, bytes from {start} on were asked for")
    return start


def look(
    repository: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    retry: Retry | None = None,
) -> Remote:
    """Ask the Hub for a repository's files. Raises InputError, MachineError."""
    retry = retry or Retry()

    def work() -> Remote:
        api = HfApi(endpoint=endpoint)
        found = api.model_info(repository, revision=revision, files_metadata=True)
        files = {}
        for entry in found.siblings or []:
            digest = entry.lfs.sha256 if entry.lfs is not None else None
            files[entry.rfilename] = RemoteFile(
                entry.rfilename, entry.size or 0, digest, entry.blob_id if entry.lfs is None else None
            )
        for name in files:
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise InputError(f"{repository} lists the file {name!r}, which would leave the folder")
        if not found.sha:
            raise MachineError(f"the Hub tells no commit of {repository}")
        return Remote(repository, found.sha, files, endpoint, retry)

    remote = retry.call(f"{repository}{f' at {revision}' if revision else ''}", work, first=True)
    if any(name.endswith(".gguf") for name in remote.files):
        raise InputError(
            f"{repository} holds GGUF files, which are another program's format",
            next="use deepseek-ai/DeepSeek-V4-Flash, the official checkpoint",
        )
    return remote
