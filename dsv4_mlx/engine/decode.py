"""The decode loop: a prompt goes in, events come out.

    PrefillProgress*  Token*  Finished       in this order; whatever happens, one Finished, and it is the last

A PrefillProgress with done == total comes once: the prompt is in.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.sampler import Floats, Sampler, SamplingOptions
from dsv4_mlx.tokenizer.template import Markers

Ended = Literal["stop", "length"]
Reason = Literal[Ended, "cancelled", "error"]
Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` tokens of the prompt are computed; `cached` more were known before."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class Token:
    """A token of the answer. Where asked for: its natural log probability, of the model's own distribution
    (before bias, penalties, constraint and temperature), and the likeliest (id, log probability), best first.
    """

    id: int
    logprob: float | None = None
    top: Top = ()


@dataclass(frozen=True)
class Finished:
    """`stop`: the model ended its turn (that token is not emitted). `length`: max_tokens or the context.

    `error` says why for reason "error": a Dsv4Error for what can be expected, anything else is a bug.
    """

    reason: Reason
    error: BaseException | None = None


Event = PrefillProgress | Token | Finished


class TokenSequence(Protocol):
    """What the decode loop needs of a session; as in Session."""

    tokens: list[int]
    markers: Markers

    @property
    def vocabulary(self) -> int: ...

    @property
    def logits(self) -> Floats: ...

    def room_after(self, tokens: Sequence[int]) -> int: ...

    def prefill(self, tokens: Sequence[int]) -> Iterator[PrefillProgress]: ...

    def advance(self, token: int) -> Floats: ...


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


def decode(
    session: TokenSequence, prompt: Sequence[int], options: SamplingOptions, wanted: GenerationLimits
) -> Generator[PrefillProgress | Token, None, Ended]:
    """The one loop: prefill cut by cut, then token by token; returns what ended it.

    It may be left or paused at any yield; the session then holds what was computed. The stopping token is
    not yielded, and the session does not take it in. Raises DoesNotFit for a prompt longer than the
    context, InputError and UsageError for ids that the model has not.
    """
    options.check(session.vocabulary)
    constraint = wanted.constraint
    room = session.room_after(prompt)
    room = room if wanted.max_tokens is None else min(wanted.max_tokens, room)
    sampler = Sampler(options, prompt=len(prompt))
    thinking = ThinkingBudget(prompt, session.markers, wanted.think_budget)
    yield from session.prefill(prompt)
    for _ in range(room):
        logits = session.logits
        token = thinking.forced
        if token is None:
            token = sampler(logits if constraint is None else constraint.allow(logits), session.tokens)
        if token == session.markers.end or token in options.stop_ids:
            return "stop"
        thinking.accept(token)
        if constraint is not None:
            constraint.accept(token)
        if wanted.logprobs is None:
            yield Token(token)
        else:
            yield Token(token, *likelihood(logits, token, wanted.logprobs))
        session.advance(token)
    return "length"


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
