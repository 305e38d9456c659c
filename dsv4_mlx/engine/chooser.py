"""What decides each token of one answer: options, what must or may not follow, how long it may think."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.sampler import Floats, Sampler
from dsv4_mlx.errors import UsageError
from dsv4_mlx.tokenizer.template import Markers

Top = tuple[tuple[int, float], ...]
MOST_LOGPROBS = 20  # alternatives of a token


@dataclass(frozen=True)
class GenerationLimits:
    """What an answer must be, beside how its tokens are drawn.

    `max_tokens` None: what the context leaves. `logprobs`: so many alternatives beside each token, of the
    model's own distribution (before bias, penalties, constraint, temperature). `think_budget`: tokens of
    thinking before its end is forced. A `constraint` is used up: it is left where the answer ends. Raises
    UsageError.
    """

    max_tokens: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    think_budget: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("max_tokens", None), ("logprobs", MOST_LOGPROBS), ("think_budget", None)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= (value if most is None else most):
                raise UsageError(f"{name} is {value}, expected 0 {f'to {most}' if most else 'or more'}")


class Chooser:
    """Follows one answer: `tokens` are the prompt and what was chosen since, without what ended it.

    Whoever answers a request for rows draws with it, row by row and in order; or draws elsewhere by
    `options` and `forced`, where not `on_host`, and tells it by `accept`. It goes only on: what was
    chosen stays chosen, so nothing may be drawn from a row that stands on a refused draft.
    """

    def __init__(
        self, prompt: Sequence[int], markers: Markers, options: SamplingOptions, wanted: GenerationLimits
    ) -> None:
        self.options, self.tokens, self.over = options, list(prompt), False
        self.stops = options.stop_ids | {markers.end}
        self._sampler = Sampler(options, prompt=len(prompt))
        self._constraint = wanted.constraint
        self._thinking = ThinkingBudget(prompt, markers, wanted.think_budget)

    @property
    def on_host(self) -> bool:
        """Whether a draw needs logits on the host."""
        return self._constraint is not None

    @property
    def forced(self) -> int | None:
        """The token that must come next, whatever the logits; None leaves the choice."""
        return self._thinking.forced

    def draw(self, logits: Floats) -> int:
        """logits float32 [V] after `tokens` -> the next token, accepted. `logits` is not changed."""
        token = self.forced
        if token is None:
            allowed = logits if self._constraint is None else self._constraint.allow(logits)
            token = self._sampler(allowed, self.tokens)
        self.accept(token)
        return token

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
