"""Whether the model thinks, and the end of a thinking that has taken its budget."""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_mlx.tokenizer.template import Markers


class Thinking:
    """Follows one turn. `budget`: tokens of thinking before its end is forced; None: as many as it likes."""

    def __init__(self, prompt: Sequence[int], markers: Markers, budget: int | None) -> None:
        self._end, self._left = markers.end_think, budget
        self._open = thinks(prompt, markers)

    @property
    def forced(self) -> int | None:
        """The token that must come next; None leaves the choice."""
        return self._end if self._open and self._left is not None and self._left <= 0 else None

    def accept(self, token: int) -> None:
        """The turn goes on with `token`."""
        self._open = self._open and token != self._end
        if self._left is not None:
            self._left -= 1


def thinks(prompt: Sequence[int], markers: Markers) -> bool:
    """Whether `prompt` ends inside the thinking of an assistant's turn."""
    for token in reversed(prompt):
        if token in (markers.think, markers.end_think, markers.assistant):
            return token == markers.think
    return False
