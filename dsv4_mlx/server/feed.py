"""Events of the engine thread, awaited on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from dsv4_mlx.scheduler.request import Event


class Feed:
    """`emit` is for the engine thread and never blocks; `next` for one task of the loop.

    What a slow client has not taken waits here: at most the answer's tokens, and only until it is dropped.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._called = False  # a wake-up is under way: no second one until it has come
        self.gone = False  # the client has left

    def emit(self, event: Event) -> None:
        self._events.append(event)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop has ended, and with it every reader
                self._loop.call_soon_threadsafe(self._ready.set)

    def leave(self) -> None:
        """The client has left: wakes `next`."""
        self.gone = True
        self._ready.set()

    async def next(self, timeout: float) -> list[Event]:
        """What has happened since; empty after `timeout` seconds, or if the client has left."""
        if not self._events and not self.gone:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
        self._ready.clear()
        self._called = False
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events
