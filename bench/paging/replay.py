"""A policy over a trace: the share of needed experts that were in a slot.

The rules are those of `dsv4_mlx/paging/expert_run.py` with reads that end at once: a step's experts are
needed together, none of them leaves for another of the same step, and everything that is missing is read.
With fewer slots than a step needs it goes through them in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.paging.traces import Trace
from dsv4_mlx.paging.policy import Policy

Make = Callable[[int, int], Policy]  # (experts, slots)
NEVER = 1 << 60


class Belady:
    """Knows the future: the loaded expert leaves that is needed last. No policy has more hits."""

    def __init__(self, experts: int, steps: Sequence[Sequence[int]]) -> None:
        self._next: list[list[int]] = [[] for _ in range(experts)]
        for now in range(len(steps) - 1, -1, -1):
            for expert in steps[now]:
                self._next[expert].append(now)

    def step(self, experts: Iterable[int]) -> None:
        for expert in experts:
            self._next[expert].pop()

    def victim(self, candidates: Sequence[int]) -> int:
        return max(candidates, key=lambda e: self._next[e][-1] if self._next[e] else NEVER)


def reads(
    steps: Sequence[Sequence[int]], slots: int, policy: Policy, *, known: bool = False
) -> list[list[int]]:
    """The experts read in each step of one layer, in the order of reading.

    `known`: they are read before the step begins, so the policy hears of the step after it chose.
    """
    loaded: set[int] = set()
    found = []
    for needed in steps:
        absent = [e for e in needed if e not in loaded]
        found.append(absent)
        if not known:
            policy.step(needed)
        waiting = set(needed)
        for expert in absent:
            if len(loaded) >= slots:
                candidates = [e for e in loaded if e not in waiting]
                if not candidates:  # a group is done with
                    waiting -= loaded
                    candidates = list(loaded)
                loaded.remove(policy.victim(candidates))
            loaded.add(expert)
        if known:
            policy.step(needed)
    return found


def misses(steps: Sequence[Sequence[int]], slots: int, policy: Policy) -> list[int]:
    """How many experts are read in each step of one layer."""
    return [len(one) for one in reads(steps, slots, policy)]


def from_cache(found: Sequence[Sequence[int]], cached: int) -> list[int]:
    """How many reads of each step the page cache answers; it keeps the `cached` records read last."""
    kept: dict[int, None] = {}
    counts = []
    for step in found:
        counts.append(sum(expert in kept for expert in step))
        for expert in step:
            kept.pop(expert, None)
            kept[expert] = None
        while len(kept) > cached:
            del kept[next(iter(kept))]
    return counts


def hit_rate(trace: Trace, slots: int, make: Make | None, warm: int = 0) -> float:
    """Over all layers, after the first `warm` steps. Without `make`: Belady."""
    needed = read = 0
    for layer in range(trace.layers):
        steps = trace.layer(layer)
        policy = Belady(trace.experts, steps) if make is None else make(trace.experts, slots)
        read += sum(misses(steps, slots, policy)[warm:])
        needed += sum(map(len, steps[warm:]))
    return 1 - read / needed
