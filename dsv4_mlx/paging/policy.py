"""Which expert gives up its slot. Pure: no input, no output, no arrays, no clock but the count of steps.

One policy object looks after one layer. A step is one run of the layer over a token, or over a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Policy(Protocol):
    """Told what is used, asked who leaves. Never told to leave an expert of the running step."""

    def step(self, experts: Iterable[int]) -> None:
        """A step begins that needs these experts, each named once; asked for victims after this."""

    def victim(self, candidates: Sequence[int]) -> int:
        """Which of these loaded experts, none needed now and never empty, leaves for one of the step."""


HALF_LIFE = 128  # steps after which a use counts half
MEMORY = 256  # comparisons over which a rule's record is averaged
OPEN = 512  # comparisons that may be undecided at a time
LARGEST = 1e200  # weights are scaled back beyond this


@dataclass(slots=True)
class _Comparison:
    """A rule would have given up `its`, the longest unused is `oldest`; who is needed first was wrong."""

    rule: int
    its: int
    oldest: int
    undecided: bool = True


class DuelPolicy:
    """Three rules propose a victim each; the one whose proposals have lately been right is followed.

    The rules: the longest unused; the least often used, where a use of HALF_LIFE steps ago counts half; the
    last used, which is right when experts come round in turn. Each of the other two is compared with the
    first whenever they differ: the expert that is needed again sooner was the wrong one to give up. So it is
    no worse for long than the longest unused, wherever that is the best rule.
    """

    def __init__(self, experts: int) -> None:
        self._used = [-1] * experts
        self._now = 0
        self._often = [0.0] * experts
        self._weight, self._growth = 1.0, 2 ** (1 / HALF_LIFE)
        self._record = [0.0, 1 / MEMORY, 0.0]  # of each rule against the first: -1 always wrong, 1 right
        self._waiting: list[list[_Comparison]] = [[] for _ in range(experts)]
        self._open: deque[_Comparison] = deque()

    def step(self, experts: Iterable[int]) -> None:
        self._weight *= self._growth
        if self._weight > LARGEST:
            self._often = [count / self._weight for count in self._often]
            self._weight = 1.0
        for expert in experts:
            self._used[expert] = self._now
            self._now += 1
            self._often[expert] += self._weight
            if self._waiting[expert]:
                self._decide(expert)

    def victim(self, candidates: Sequence[int]) -> int:
        proposed = (
            min(candidates, key=self._used.__getitem__),
            min(candidates, key=self._often.__getitem__),
            max(candidates, key=self._used.__getitem__),
        )
        for rule in (1, 2):
            if proposed[rule] != proposed[0]:
                self._compare(_Comparison(rule, proposed[rule], proposed[0]))
        return proposed[max(range(len(proposed)), key=self._record.__getitem__)]

    def _compare(self, new: _Comparison) -> None:
        for expert in (new.its, new.oldest):
            waiting = self._waiting[expert]
            waiting.append(new)
            if len(waiting) > 2 * OPEN:  # an expert that is not needed for long: most were decided elsewhere
                waiting[:] = [one for one in waiting if one.undecided]
        self._open.append(new)
        if len(self._open) > OPEN:
            self._open.popleft().undecided = False

    def _decide(self, needed: int) -> None:
        for one in self._waiting[needed]:
            if one.undecided:
                one.undecided = False
                right = -1.0 if one.its == needed else 1.0
                self._record[one.rule] += (right - self._record[one.rule]) / MEMORY
        self._waiting[needed].clear()
