"""Policies that were tried and lost to paging's `DuelPolicy`; bench/LOG.md has their figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

HALF_LIFE = 128  # steps
SURPRISE = 1 / 100  # weight of one gap in the estimate of how regular gaps are


class LruPolicy:
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


class Often:
    """The least often used leaves, where a use of HALF_LIFE steps ago counts half: fails a scan."""

    def __init__(self, experts: int, half_life: float = HALF_LIFE) -> None:
        self._often = [0.0] * experts
        self._weight, self._growth = 1.0, 2 ** (1 / half_life)

    def step(self, experts: Iterable[int]) -> None:
        self._weight *= self._growth
        if self._weight > 1e200:
            self._often = [count / self._weight for count in self._often]
            self._weight = 1.0
        for expert in experts:
            self._often[expert] += self._weight

    def victim(self, candidates: Sequence[int]) -> int:
        return min(candidates, key=self._often.__getitem__)


class Gaps:
    """The expert whose next use is expected last leaves.

    Expected is the mean gap between its uses, plus its age times (c - 1), where c is the squared coefficient
    of variation of all gaps: 0 if they are regular (then what was used last comes last), 1 if uses have no
    memory, more if they come in bursts.
    """

    def __init__(self, experts: int) -> None:
        self._last = [-1] * experts
        self._often = [0.0] * experts
        self._decay = 0.5 ** (1 / HALF_LIFE)
        self._now, self._irregular = 0, 1.0

    def step(self, experts: Iterable[int]) -> None:
        self._now += 1
        for expert in experts:
            gap = self._now - self._last[expert]
            if self._last[expert] >= 0:
                surprise = min((gap / self._gap(expert) - 1) ** 2, 16)
                self._irregular += SURPRISE * (surprise - self._irregular)
                self._often[expert] *= self._decay**gap
            self._often[expert] += 1
            self._last[expert] = self._now

    def victim(self, candidates: Sequence[int]) -> int:
        factor = min(self._irregular, 4) - 1
        return max(candidates, key=lambda e: self._gap(e) + factor * (self._now - self._last[e]))

    def _gap(self, expert: int) -> float:
        if self._last[expert] < 0:
            return 1e9
        rate = self._often[expert] * self._decay ** (self._now - self._last[expert])
        return float((1 - self._decay**self._now) / (rate * (1 - self._decay)))
