"""What a turn must be, and what comes out of the decode loop while it is made."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.likelihood import Top


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` tokens of the prompt are computed; the others were known before."""

    done: int
    total: int


@dataclass(frozen=True)
class Sampled:
    """A token of the answer. With `Wanted.logprobs`: its natural log probability, and the likeliest ones'."""

    token: int
    logprob: float | None = None
    top: Top = ()


@dataclass(frozen=True)
class Wanted:
    """What an answer must be, beside how its tokens are drawn.

    `max_tokens` None: what the context leaves. `logprobs`: so many alternatives beside each token, of the
    model's own distribution (before bias, penalties, constraint, temperature). `think_budget`: tokens of
    thinking before its end is forced. A `constraint` is used up: it is left where the answer ends.
    """

    max_tokens: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    think_budget: int | None = None
