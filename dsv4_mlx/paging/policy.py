"""Which expert gives up its slot. Pure: no input, no output, no arrays, no clock but the count of steps.

One policy object looks after one layer. A step is one run of the layer over a token, or over a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Policy(Protocol):
    """Told what is used, asked who leaves. Never told to leave an expert of the running step."""

    def step(self, experts: Iterable[int]) -> None:
        """A step begins that needs these experts, each named once; asked for victims after this."""

    def victim(self, candidates: Sequence[int]) -> int:
        """Which of these loaded experts, none needed now and never empty, leaves for one of the step."""


class Lru:
    """The expert whose last use is longest ago. Of one step, the one named first is the older."""

    def __init__(self, experts: int) -> None:
        self._used = [-1] * experts
        self._now = 0

    def step(self, experts: Iterable[int]) -> None:
        for expert in experts:
            self._used[expert] = self._now
            self._now += 1

    def victim(self, candidates: Sequence[int]) -> int:
        return min(candidates, key=self._used.__getitem__)
