"""How many connections are open at once, so that descriptors suffice for them."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from typing import Any, Protocol

SPARE = 16  # connections beyond the limit that are kept open to be told so
PAUSE = 0.5  # seconds without a try to accept after one failed; asyncio comes again after one
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Connection(Protocol):
    transport: asyncio.Transport


class Crowd:
    """The first `most` connections are served. Later ones are refused until one of those ends; of them too
    only SPARE stay open: the oldest makes room for the next, so that nobody waits for an answer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0  # accepted and not closed: those that asyncio is still setting up count
        self._served: set[Connection] = set()
        self._refused: dict[Connection, None] = {}  # in order of arrival

    def room(self) -> bool:
        """Whether one more may be accepted now; if not, soon."""
        if self._open < self._most + SPARE:
            return True
        if not any(one.transport.is_closing() for one in self._refused):
            for oldest in list(self._refused)[:1]:
                oldest.transport.abort()
        return False

    def accepted(self) -> None:
        self._open += 1

    def came(self, one: Connection) -> None:
        if len(self._served) < self._most:
            self._served.add(one)
        else:
            self._refused[one] = None

    def left(self, one: Connection) -> None:
        self._open -= 1
        self._refused.pop(one, None)
        self._served.discard(one)
        if self._refused and len(self._served) < self._most:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            self._served.add(oldest)

    def refuses(self, one: Connection) -> bool:
        return one in self._refused


class Door(socket.socket):
    """A listening socket for asyncio's loop, which stops accepting for now where `accept` would block."""

    def __init__(self, bound: socket.socket, crowd: Crowd) -> None:
        super().__init__(fileno=bound.detach())
        self._crowd = crowd
        self._again = 0.0  # time.monotonic() of the next try
        self._failed = False

    def accept(self) -> tuple[socket.socket, Any]:
        if time.monotonic() < self._again or not self._crowd.room():
            raise BlockingIOError
        try:
            accepted = super().accept()
        except OSError as error:
            if error.errno in EXHAUSTED:  # asyncio says so to the loop's handler, and pauses
                self._again = time.monotonic() + PAUSE
                if not self._failed:
                    log = logging.getLogger("dsv4_mlx.server")
                    log.warning("new connections wait until others end: %s", error.strerror)
                self._failed = True
            raise
        self._failed = False
        self._crowd.accepted()
        return accepted


def without_exhausted(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler for a loop with doors, which have said in one line what asyncio would trace."""
    error = context.get("exception")
    if not (isinstance(error, OSError) and error.errno in EXHAUSTED and "socket" in context):
        loop.default_exception_handler(context)
