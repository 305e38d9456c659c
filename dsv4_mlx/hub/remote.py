"""What a repository holds at one commit, and small reads from its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.hub.patience import Patience


@dataclass(frozen=True)
class RemoteFile:
    """`sha256` None for a small file, of which the Hub tells no such digest."""

    name: str
    bytes: int
    sha256: str | None


class Stopped(Exception):
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
        patience: Patience,
    ) -> None:
        self.repository, self.commit, self.files = repository, commit, files
        self.endpoint, self.patience = endpoint, patience
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

        return self.patience.over(f"{name} of {self.repository}", work, stop=self.stop)

    @contextmanager
    def stream(self, name: str, start: int, end: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the answer begins, and its pieces: `start`, or 0 from a server that knows no parts.

        Raises what the library raises; OSError for an address that has expired, which is then asked for anew.
        """
        if self.stop.is_set():
            raise Stopped
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
            yield (start if response.status_code == 206 else 0), response.iter_raw()

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


def look(
    repository: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    patience: Patience | None = None,
) -> Remote:
    """Ask the Hub for a repository's files. Raises InputError, MachineError."""
    patience = patience or Patience()

    def work() -> Remote:
        api = HfApi(endpoint=endpoint)
        found = api.model_info(repository, revision=revision, files_metadata=True)
        files = {}
        for entry in found.siblings or []:
            digest = entry.lfs.sha256 if entry.lfs is not None else None
            files[entry.rfilename] = RemoteFile(entry.rfilename, entry.size or 0, digest)
        for name in files:
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise InputError(f"{repository} lists the file {name!r}, which would leave the folder")
        if not found.sha:
            raise MachineError(f"the Hub tells no commit of {repository}")
        return Remote(repository, found.sha, files, endpoint, patience)

    remote = patience.over(f"{repository}{f' at {revision}' if revision else ''}", work)
    if any(name.endswith(".gguf") for name in remote.files):
        raise InputError(
            f"{repository} holds GGUF files, which are another program's format",
            next="use deepseek-ai/DeepSeek-V4-Flash, the official checkpoint",
        )
    return remote
