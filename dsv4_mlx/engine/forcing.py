"""Tokens that are not drawn: the end of a thinking that took its budget, and how an answer must open."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dsv4_mlx.chat.prompt import Markers


class Forcing:
    """Follows one answer. `budget`: tokens of thinking before its end is forced; `opening`: what the answer
    begins with, after the thinking or, where the prompt leaves none open, at once."""

    def __init__(
        self, prompt: Sequence[int], markers: Markers, budget: int | None, opening: Sequence[int]
    ) -> None:
        self._end_think, self._budget = markers.end_think, budget
        self._opening = deque(opening)
        self._thinking = thinks(prompt, markers)
        self._thought = 0

    @property
    def token(self) -> int | None:
        """The token that must come next; None leaves the choice."""
        if self._thinking:
            over = self._budget is not None and self._thought >= self._budget
            return self._end_think if over else None
        return self._opening[0] if self._opening else None

    def instead_of_end(self) -> int | None:
        """What comes where the model would end its turn; None if it may."""
        return self._end_think if self._thinking and self._opening else None

    def accept(self, token: int) -> None:
        """The answer goes on with `token`."""
        if self._thinking:
            self._thought += 1
            self._thinking = token != self._end_think
        elif self._opening:
            self._opening.popleft()


def thinks(prompt: Sequence[int], markers: Markers) -> bool:
    """Whether `prompt` ends inside the thinking of an assistant's turn."""
    for token in reversed(prompt):
        if token in (markers.think, markers.end_think, markers.assistant):
            return token == markers.think
    return False
