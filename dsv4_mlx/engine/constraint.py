"""What the model may say next: the decode loop asks, a grammar answers. Plain numpy; grammars: constrain/.

    Constraint.mask --> what may follow, for the sampler --> id --Constraint.accept--> it has moved on

The end of the turn is a token like any other: allowed exactly where what was said may be complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Constraint(Protocol):
    """The state of one answer. One owner, one thread; a second branch needs a `fork`."""

    @property
    def finished(self) -> bool:
        """Whether only the end of the turn may follow."""

    def mask(self, size: int) -> Mask | None:
        """bool [size], the caller's own: the tokens that may follow, at least one; None: all of them.

        Raises ModelOutputError if the constraint can't go on (its own limits).
        """

    def accept(self, token: int) -> None:
        """The model has said `token`; the end of the turn needn't be told.

        Raises InputError if it may not follow.
        """

    def fork(self) -> Constraint:
        """An independent constraint at the same point; for drafts that may be refused, and for branches."""


class Without:
    """Everything but `tokens`."""

    finished = False

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = np.array(sorted(tokens), np.int64)

    def mask(self, size: int) -> Mask:
        mask = np.ones(size, np.bool_)
        mask[self.tokens] = False
        return mask

    def accept(self, token: int) -> None:
        """Every token leaves it as it is."""

    def fork(self) -> Without:
        return self


class AfterThinking:
    """Thinking without the tokens in `forbidden`, then `inner`: it begins after the `end_think` token."""

    def __init__(self, inner: Constraint, end_think: int, forbidden: Iterable[int]) -> None:
        self.inner, self.end_think = inner, end_think
        self.thinking = True
        self._free = Without(forbidden)

    @property
    def finished(self) -> bool:
        return not self.thinking and self.inner.finished

    def mask(self, size: int) -> Mask | None:
        return self._free.mask(size) if self.thinking else self.inner.mask(size)

    def accept(self, token: int) -> None:
        if not self.thinking:
            self.inner.accept(token)
        elif token == self.end_think:
            self.thinking = False

    def fork(self) -> AfterThinking:
        twin = AfterThinking(self.inner.fork(), self.end_think, ())
        twin.thinking, twin._free = self.thinking, self._free
        return twin
