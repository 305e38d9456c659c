"""HTTP as the tests speak it: by hand, so that nothing is added or repaired on the way."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connected(port: int, timeout: float = 20) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        yield connection


def request(
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    raw: bytes | None = None,
) -> bytes:
    """The bytes of a request; `headers` replace the usual ones, a value "" leaves one out."""
    content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    usual = {"Host": "127.0.0.1", "Connection": "close"}
    if body is not None or raw is not None:
        usual |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    lines = [f"{name}: {value}" for name, value in {**usual, **(headers or {})}.items() if value]
    return f"{method} {path} HTTP/1.1\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def read(connection: socket.socket) -> bytes:
    """All until the other side closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def parsed(raw: bytes) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = dechunked(body)
    return Reply(int(first.split()[1]), headers, body)


def dechunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        out, body = out + rest[:count], rest[count + 2 :]
        if count == 0:
            break
    return out


def call(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    raw: bytes | None = None,
) -> Reply:
    with connected(port) as connection:
        connection.sendall(request(method, path, body, headers, raw=raw))
        return parsed(read(connection))


def until(condition: Any, seconds: float = 10) -> bool:
    """Whether `condition()` becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())
