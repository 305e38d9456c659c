"""One run of a layer over its experts: what to read next, what to compute next. Pure: no reading, no arrays.

The driver asks and reports in any order that events come:

    run = ExpertRun(table, policy, experts) the experts this run needs, in the order of the disk
    run.reads()                             begin to read each of these
    table.filled(e), table.failed(e)        a read ended; a failed one may be asked for again: run.again(e)
    run.group()                             loaded experts to compute with now; none: wait for a read first
    run.blocked                             experts have no slot yet: finish what was computed, then reads()
    run.done                                every expert has been computed with

With fewer slots than experts the run goes through them in groups. It always ends: a slot is held by an
expert being read, by one waiting to be computed, or by work that finishes, and each of these passes.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_mlx.paging.policy import Policy
from dsv4_mlx.paging.slots import SlotTable


class ExpertRun:
    """Needs each of `experts` once."""

    def __init__(self, table: SlotTable, policy: Policy, experts: Sequence[int]) -> None:
        self._table, self._policy = table, policy
        self.hits = [e for e in experts if table.ready(e)]
        self.early = [e for e in experts if table.reading(e)]  # being read on somebody's advice
        self.misses = [e for e in experts if not table.ready(e) and not table.reading(e)]
        self._unread = self.misses[::-1]
        self.size = len(experts)
        self._waiting = set(experts)  # not computed yet
        self._began = not self.hits
        policy.step(experts)

    def reads(self) -> list[int]:
        """Experts that now have a slot and must be read into it, in the order of the disk."""
        begun: list[int] = []
        while self._unread and self._table.free:
            begun.append(self._begin(None))
        if not self._unread:
            return begun
        candidates = self._table.loaded(besides=self._waiting)
        while self._unread and candidates:
            victim = self._policy.victim(candidates)
            candidates.remove(victim)
            begun.append(self._begin(victim))
        return begun

    def _begin(self, victim: int | None) -> int:
        expert = self._unread.pop()
        self._table.claim(expert, victim)
        return expert

    def again(self, expert: int) -> None:
        """Reading this expert failed on somebody's advice, or it was never begun: it is a miss after all."""
        self._unread.append(expert)

    def group(self, worth: int = 1) -> list[int]:
        """Loaded experts that nobody has computed with yet, each handed out once.

        The first group is what was there; a later one has `worth` experts, or as many as can still come
        before slots are given up: with slots for two groups one is read while the other is computed.
        """
        loaded = [e for e in self._waiting if self._table.ready(e)]
        if self._unread:
            worth = min(worth, max(1, self._table.slots // 2))
        if self._began and self.reading and len(loaded) < worth:
            return []
        self._began = True
        self._waiting.difference_update(loaded)
        return sorted(loaded)

    @property
    def reading(self) -> list[int]:
        """Experts of this run that are being read."""
        return sorted(e for e in self._waiting if self._table.reading(e))

    @property
    def blocked(self) -> bool:
        """Experts are left that have no slot."""
        return bool(self._unread)

    @property
    def done(self) -> bool:
        return not self._waiting
