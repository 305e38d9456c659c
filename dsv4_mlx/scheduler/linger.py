"""What is held while there are answers to make, and for a while after the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

SECONDS = 60.0  # an agent pauses between two requests: for its tools, or for its user


class Held(Protocol):
    def on(self) -> None: ...
    def off(self) -> None: ...


class Linger:
    """`held` goes on when work comes, and off `SECONDS` after the last of it. One thread's."""

    def __init__(self, held: Held | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._held, self._clock = held, clock
        self._on = False
        self._until: float | None = None  # by the clock; None while there is work

    def busy(self) -> None:
        """There is work."""
        self._until = None
        if self._held is not None and not self._on:
            self._on = True
            self._held.on()

    def idle(self) -> float | None:
        """There is none. Seconds after which to say so again; None once `held` is off."""
        if not self._on:
            return None
        now = self._clock()
        if self._until is None:
            self._until = now + SECONDS
        if now < self._until:
            return self._until - now
        self.close()
        return None

    def close(self) -> None:
        """Off at once."""
        if self._held is not None and self._on:
            self._on = False
            self._held.off()
