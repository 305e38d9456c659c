"""A decode step with paged experts as a row of waits: the timeline of `paging/paged_experts.py`, no work.

A layer computes its attention and router, hands the routed ids to the host, and asks for what is missing.
While that is read the shared expert and the loaded experts are computed; then the experts that came. One disk
serves requests in the order they were made. Layers that route by token ask when the step begins, and part of
the others' misses may have been foreseen one layer earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Seconds of computing: of a layer up to its router (`before`), of what runs beside reads (`beside`), of
    one routed expert (`expert`), of handing ids to the host (`sync`), and once a token (`outside`)."""

    before: float
    beside: float
    expert: float
    sync: float = 0.0
    outside: float = 0.0


@dataclass(frozen=True)
class DiskSpeed:
    """`latency` seconds before a batch of reads brings anything, then `speed` bytes per second.

    `cached` is the speed for records that the system's page cache holds.
    """

    latency: float
    speed: float
    cached: float

    def seconds(self, read: float, from_cache: float) -> float:
        """Bytes from the disk and from the page cache, asked for together."""
        return (self.latency + read / self.speed if read else 0.0) + from_cache / self.cached


@dataclass(frozen=True)
class Need:
    """What one layer needs for one token, in experts: loaded, to be read, to be copied from the page cache.

    Means are as good as counts. `known`: asked for when the step begins. `foreseen`: the share of reads that
    were begun while the layer before was computed.
    """

    hits: float
    read: float = 0.0
    cached: float = 0.0
    known: bool = False
    foreseen: float = 0.0


def token_seconds(costs: Costs, disk: DiskSpeed, record_bytes: int, layers: Sequence[Need]) -> float:
    """One token through all layers."""
    now = free = 0.0  # free: when the disk has done what it was asked so far
    ready = [0.0] * len(layers)  # when what was asked for early is there

    def ask(need: Need, share: float) -> float:
        nonlocal free
        seconds = disk.seconds(share * need.read * record_bytes, share * need.cached * record_bytes)
        if not seconds:
            return 0.0
        free = max(free, now) + seconds
        return free

    for number, need in enumerate(layers):
        if need.known:
            ready[number] = ask(need, 1.0)
    for number, need in enumerate(layers):
        now += costs.before + costs.sync
        if not need.known:
            ready[number] = max(ready[number], ask(need, 1 - need.foreseen if number else 1.0))
        if number + 1 < len(layers) and not layers[number + 1].known:
            ready[number + 1] = ask(layers[number + 1], layers[number + 1].foreseen)
        now = max(now + costs.beside + need.hits * costs.expert, ready[number])
        now += (need.read + need.cached) * costs.expert
    return now + costs.outside


def tokens_per_second(
    costs: Costs, disk: DiskSpeed, record_bytes: int, tokens: Iterable[Sequence[Need]]
) -> float:
    """The mean speed over tokens. Raises ValueError if there are none."""
    seconds = [token_seconds(costs, disk, record_bytes, layers) for layers in tokens]
    if not seconds:
        raise ValueError("no tokens to predict for")
    return len(seconds) / sum(seconds)
