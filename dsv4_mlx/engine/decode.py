"""What a turn must be, and what comes out of the decode loop while it is made.

How likely a token was, and which others were.

Whether the model thinks, and the end of a thinking that has taken its budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.sampler import Floats
from dsv4_mlx.tokenizer.template import Markers


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` tokens of the prompt are computed; the others were known before."""

    done: int
    total: int


@dataclass(frozen=True)
class Sampled:
    """A token of the answer. Where asked for: its natural log probability, and the likeliest ones'."""

    token: int
    logprob: float | None = None
    top: Top = ()


@dataclass(frozen=True)
class GenerationLimits:
    """What an answer must be, beside how its tokens are drawn.

    `max_tokens` None: what the context leaves. `logprobs`: so many alternatives beside each token, of the
    model's own distribution (before bias, penalties, constraint, temperature). `think_budget`: tokens of
    thinking before its end is forced. A `constraint` is used up: it is left where the answer ends.
    """

    max_tokens: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    think_budget: int | None = None


Top = tuple[tuple[int, float], ...]


def likelihood(logits: Floats, token: int, count: int) -> tuple[float, Top]:
    """logits float32 [V] -> natural log probability of `token`, and of the `count` likeliest, best first.

    A tie goes to the smaller id.
    """
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    count = min(count, len(values))
    if count == 0:
        return float(values[token]), ()
    edge = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= edge)
    best = candidates[np.argsort(-values[candidates], kind="stable")][:count]
    return float(values[token]), tuple((int(i), float(values[i])) for i in best)


class ThinkingBudget:
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
