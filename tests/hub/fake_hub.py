"""A Hub of our own on this machine: its listing, its files with parts and redirects, and its bad days."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "deepseek-ai/Tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Asked:
    """One request for a file. What `Hub.fault` may change about its answer."""

    name: str
    method: str
    start: int
    number: int  # of the GETs of this file, from 1
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # the connection drops after so many bytes of the body


Fault = Callable[[Asked], None]


class Hub:
    """Serves the files of a folder. `redirect`: large files come from another address, as the Hub's do."""

    def __init__(self, folder: Path, *, redirect: bool = False, fault: Fault | None = None) -> None:
        self.redirect, self.fault = redirect, fault
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        self.listed = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        self.sizes = {name: len(data) for name, data in self.files.items()}
        self.gets: dict[str, int] = {}
        self.sent: dict[str, int] = {}  # bytes of bodies, by file
        self.tokens: dict[str, set[str | None]] = {"api": set(), "files": set(), "cdn": set()}
        self.delay = 0.0
        self.rate = 0.0  # bytes per second of all connections together; 0: as fast as it goes
        self.drop: Callable[[], bool] = lambda: False  # asked before each piece of a file
        self.asked: list[tuple[str, int, int]] = []  # file, first byte and end of each GET
        self.open = self.most = 0  # answers on their way now, and at most
        self.free = 0.0  # when the line is free again
        self.endpoint = ""
        self.lock = threading.Lock()

    def pace(self, count: int) -> float:
        """Seconds to wait after so many bytes."""
        with self.lock:
            now = time.monotonic()
            self.free = max(self.free, now) + (count / self.rate if self.rate else 0.0)
            return self.free - now + self.delay

    def listing(self) -> dict[str, object]:
        siblings = []
        for name in self.files:
            data = self.files[name]
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": self.sizes[name], "blobId": blob}
            if name.endswith(".safetensors"):
                lfs = {"sha256": self.listed[name], "size": self.sizes[name], "pointerSize": 130}
                entry["lfs"] = lfs
            siblings.append(entry)
        return {"_id": "1", "id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    hub: Hub  # set by `serving`
    disable_nagle_algorithm = True  # or every answer waits for an acknowledgement
    wbufsize = 1 << 16

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        place = parts[0] if parts[0] in self.hub.tokens else "files"
        self.hub.tokens[place].add(self.headers.get("Authorization"))
        if parts[0] == "api":
            known = "/".join(parts[2:4]) == REPOSITORY and (len(parts) == 4 or parts[5] in ("main", COMMIT))
            data = json.dumps(self.hub.listing() if known else {"error": "not here"}).encode()
            headers = {} if known else {"X-Error-Code": "RepoNotFound"}
            self.send(Asked("", method, 0, 0, data, 200 if known else 404, headers))
            return
        self.file(method, unquote(parts[-1]), parts[0] == "cdn")

    def file(self, method: str, name: str, stored: bool) -> None:
        if name not in self.hub.files:
            self.send(Asked(name, method, 0, 0, b"", 404, {"X-Error-Code": "EntryNotFound"}))
            return
        data = self.hub.files[name]
        large = name.endswith(".safetensors")
        headers = {
            "ETag": f'"{self.hub.listed[name]}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{self.hub.listed[name]}"',
            "X-Linked-Size": str(self.hub.sizes[name]),
            "Accept-Ranges": "bytes",
        }
        if self.hub.redirect and large and not stored:
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")  # another host to a client
            headers["Location"] = f"{elsewhere}/cdn/{name}?signed=yes"
            self.send(Asked(name, "HEAD", 0, 0, b"", 302, headers))
            return
        asked = Asked(name, method, 0, 0, data, 200, headers)
        part = self.headers.get("Range")
        if part is not None:
            first, last = part.removeprefix("bytes=").split("-")
            asked.start, end = int(first), int(last) + 1 if last else len(data)
            asked.status, asked.body = 206, data[asked.start : end]
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        if method == "GET":
            with self.hub.lock:
                self.hub.gets[name] = asked.number = self.hub.gets.get(name, 0) + 1
                self.hub.asked.append((name, asked.start, asked.start + len(asked.body)))
        if self.hub.fault is not None:
            self.hub.fault(asked)
        self.send(asked)

    def send(self, asked: Asked) -> None:
        self.send_response(asked.status)
        for key, value in asked.headers.items():
            self.send_header(key, value)
        if "Content-Length" not in asked.headers:
            self.send_header("Content-Length", str(len(asked.body)))
        self.end_headers()
        if asked.method == "HEAD":
            return
        with self.hub.lock:
            self.hub.open += 1
            self.hub.most = max(self.hub.most, self.hub.open)
        try:
            whole = self.pieces(asked)
        finally:
            with self.hub.lock:
                self.hub.open -= 1
        if not whole:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def pieces(self, asked: Asked) -> bool:
        """Whether all of the body was sent."""
        body = asked.body if asked.cut is None else asked.body[: asked.cut]
        for at in range(0, len(body), 1 << 16):
            if asked.name and self.hub.drop():
                return False
            self.wfile.write(body[at : at + (1 << 16)])
            with self.hub.lock:
                self.hub.sent[asked.name] = self.hub.sent.get(asked.name, 0) + len(body[at : at + (1 << 16)])
            if wait := self.hub.pace(len(body[at : at + (1 << 16)])):
                threading.Event().wait(wait)
        return asked.cut is None


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away, or a connection cut on purpose."""

    server = Quiet(("127.0.0.1", 0), type("Ours", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
