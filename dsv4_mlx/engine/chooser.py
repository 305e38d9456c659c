"""What decides each token of one answer: options, what must or may not follow, how long it may think."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.errors import UsageError
from dsv4_mlx.tokenizer.template import Markers

Top = tuple[tuple[int, float], ...]
Score = tuple[float, Top]  # natural log probability of a token, and of the likeliest in its place
SCORED = 16  # rows of logits whose likeliest tokens are sorted out at once: 17 MB of a full vocabulary
MOST_LOGPROBS = 20  # alternatives of a token


@dataclass(frozen=True)
class GenerationLimits:
    """What an answer must be, beside how its tokens are drawn.

    `max_tokens` None: what the context leaves. `logprobs`: so many alternatives beside each token, of the
    model's own distribution (before bias, penalties, constraint, temperature); `prompt_logprobs`: the same
    for the prompt. `think_budget`: tokens of thinking before its end is forced. A `constraint` is used up: it
    is left where the answer ends. Raises UsageError.
    """

    max_tokens: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    think_budget: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, most in (
            ("max_tokens", None),
            ("logprobs", MOST_LOGPROBS),
            ("prompt_logprobs", MOST_LOGPROBS),
            ("think_budget", None),
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= (value if most is None else most):
                raise UsageError(f"{name} is {value}, expected 0 {f'to {most}' if most else 'or more'}")

    def scores(self, prompt: Sequence[int], markers: Markers) -> PromptScores | None:
        """What gathers the prompt's log probabilities, if they are asked for."""
        count = self.prompt_logprobs
        return None if count is None else PromptScores(prompt, markers.end, count)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Rows of log probabilities that may not be computed yet: of one token each, and of the likeliest."""

    own: mx.array  # float32 [R]
    ids: mx.array  # int32 [R, count], best first; a tie goes to the smaller id
    values: mx.array  # float32 [R, count]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """To be evaluated."""
        return self.own, self.ids, self.values

    def read(self) -> list[Score]:
        """One of each row."""
        rows = zip(*(array.tolist() for array in self.arrays), strict=True)
        return [(own, tuple(zip(ids, values, strict=True))) for own, ids, values in rows]


def likelihood(logits: mx.array, tokens: mx.array, count: int) -> Likelihood:
    """logits float32 [R, V], a token int32 [R] of each row -> natural log probabilities, not evaluated."""
    values = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]
    # A float's magnitude as bits, with its sign, orders as the float does. Descending, then the id: one key,
    # none equal to another.
    bits = logits.view(mx.int32)
    rising = mx.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    keys = (~rising.astype(mx.int64) << 32) | mx.arange(logits.shape[-1], dtype=mx.int64)
    ids = (
        (mx.sort(keys, axis=-1)[:, :count] & 0x7FFFFFFF).astype(mx.int32) if count else tokens[:, None][:, :0]
    )
    return Likelihood(own, ids, mx.take_along_axis(values, ids, axis=-1))


@dataclass(frozen=True, eq=False)
class Draw:
    """A token that is being chosen. `id` int32 [] may be the next step's input before it is read."""

    id: mx.array
    likelihood: Likelihood | None  # of one row

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """To be evaluated together: one wait for all of it."""
        return (self.id, *(() if self.likelihood is None else self.likelihood.arrays))


class Chooser:
    """Follows one answer: `tokens` are the prompt and what was chosen since, without what ended it.

    Whoever answers a request for rows draws with it, row by row and in order: at once by `draw`, or by
    `begin` and `finish`. It goes only on: what was chosen stays chosen, so nothing may be finished from a row
    that stands on a refused draft.
    """

    def __init__(
        self, prompt: Sequence[int], markers: Markers, options: SamplingOptions, wanted: GenerationLimits
    ) -> None:
        self.options, self.tokens, self.over = options, list(prompt), False
        self.stops = options.stop_ids | {markers.end}
        self._sampler = Sampler(options, prompt=len(prompt))
        self._constraint, self._logprobs = wanted.constraint, wanted.logprobs
        self._thinking = ThinkingBudget(prompt, markers, wanted.think_budget)

    def begin(self, logits: mx.array) -> Draw:
        """logits float32 [V] after `tokens` -> what follows, not evaluated.

        Raises ModelOutputError if the constraint can't go on.
        """
        token = self._thinking.forced
        if token is not None:
            id = mx.array(token, mx.int32)
        else:
            mask = None if self._constraint is None else self._constraint.mask(logits.size)
            id = self._sampler(logits, self.tokens, mask)
        if self._logprobs is None:
            return Draw(id, None)
        return Draw(id, likelihood(logits[None], id[None], self._logprobs))

    def prepare(self) -> None:
        """Make what the draw after this one needs of the host while the device works."""
        self._sampler.prepare(len(self.tokens) + 1)

    def finish(self, draw: Draw) -> tuple[int, Score | None]:
        """The token, accepted, and if it was asked for how likely it was. Waits for what is not computed."""
        mx.eval(draw.arrays)
        token = int(draw.id)
        self.accept(token)
        return token, None if draw.likelihood is None else draw.likelihood.read()[0]

    def draw(self, logits: mx.array) -> tuple[int, Score | None]:
        """`begin` and `finish`."""
        return self.finish(self.begin(logits))

    def accept(self, token: int) -> None:
        """The answer goes on with `token`, or is `over` with it."""
        if self.over:
            raise RuntimeError("the answer is over")
        self.over = token in self.stops
        if self.over:
            return
        self.tokens.append(token)
        self._thinking.accept(token)
        if self._constraint is not None:
            self._constraint.accept(token)


class PromptScores:
    """Gathers how likely each of `tokens`, and `end` after them, was; `count` alternatives beside each."""

    def __init__(self, tokens: Sequence[int], end: int, count: int) -> None:
        self._following, self._count = [*tokens[1:], end], count
        self._found: list[Score] = []
        self._taken = 0

    def add(self, streams: Sequence[Any], logits: Callable[..., Any]) -> None:
        """streams: [1, T, ...] of the chunks that come next, for `logits` of a model."""
        for stream in streams:
            for start in range(0, stream.shape[1], SCORED):
                rows = logits(stream[:, start : start + SCORED], last=False)[0]
                following = self._following[self._taken : self._taken + len(rows)]
                self._taken += len(rows)
                found = likelihood(rows, mx.array(following, mx.int32), self._count)
                mx.eval(found.arrays)
                self._found += found.read()

    def take(self) -> tuple[Score, ...]:
        """Those found since the last call."""
        found, self._found = tuple(self._found), []
        return found


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
