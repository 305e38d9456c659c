"""What decides each token of one answer: options, what must or may not follow, how long it may think.

A draw depends on (seed, position) and the logits, on nothing else: what other requests do can't change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import UsageError
from dsv4_mlx.tokenizer.template import Markers

Floats = npt.NDArray[np.float32]


class Sampler:
    """Chooses tokens by one set of options. `prompt`: how many leading tokens are not the model's own."""

    def __init__(self, options: SamplingOptions, prompt: int = 0) -> None:
        self.options, self.prompt = options, prompt
        self._bias = np.array(list(options.logit_bias.values()), np.float32)
        self._biased = np.array(list(options.logit_bias), np.int64)
        self._all, self._answer = _Counts(0), _Counts(prompt)

    def __call__(self, logits: Floats, tokens: Sequence[int]) -> int:
        """logits float32 [V] after `tokens` -> the token at position len(tokens). `logits` is not changed."""
        o = self.options
        logits = self._adjusted(logits, tokens)
        if o.temperature == 0:
            return int(np.argmax(logits))
        ids, weights = self._kept(logits)
        draw = np.random.Generator(np.random.Philox(key=[o.seed, len(tokens)])).random()
        cumulative = np.cumsum(weights, dtype=np.float64)
        at = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])

    def _adjusted(self, logits: Floats, tokens: Sequence[int]) -> Floats:
        o = self.options
        repeated = o.repetition_penalty != 1.0
        counted = (o.presence_penalty, o.frequency_penalty) != (0.0, 0.0)
        if not (repeated or counted or len(self._bias)):
            return logits
        logits = logits.copy()
        logits[self._biased] += self._bias
        if repeated:
            seen = self._all.of(tokens, len(logits)) > 0
            factor = np.float32(o.repetition_penalty)
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        if counted:
            counts = self._answer.of(tokens, len(logits))
            logits -= np.float32(o.presence_penalty) * (counts > 0)
            logits -= np.float32(o.frequency_penalty) * counts
        return logits

    def _kept(self, logits: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Ids that can be drawn, in order of id, and their weights (not normalised)."""
        o = self.options
        below = logits.astype(np.float64)
        below -= below.max()
        with np.errstate(over="ignore"):  # a temperature near 0 may give -inf: a weight of 0
            weights = np.exp(below / o.temperature)
        keep = np.ones(len(weights), bool)
        if 0 < o.top_k < len(weights):
            keep = _largest(weights, o.top_k)
        if o.top_p < 1:
            keep &= _nucleus(np.where(keep, weights, 0.0), o.top_p)
        if o.min_p > 0:
            keep &= weights >= o.min_p  # the largest weight is 1
        ids = np.flatnonzero(keep & (weights > 0))  # a constraint's -inf must not be drawn by rounding
        return ids, weights[ids]


class _Counts:
    """How often each token occurs after the first `skip`; a sequence that only grew costs its new tokens."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self._tokens: list[int] = []
        self._counts: npt.NDArray[np.float32] = np.zeros(0, np.float32)

    def of(self, tokens: Sequence[int], vocabulary: int) -> npt.NDArray[np.float32]:
        """float32 [vocabulary]; not to be changed."""
        counted = len(self._tokens)
        if len(self._counts) != vocabulary or list(tokens[:counted]) != self._tokens:
            self._tokens, counted = [], 0
            self._counts = np.zeros(vocabulary, np.float32)
        new = list(tokens[counted:])
        np.add.at(self._counts, np.asarray(new[max(0, self.skip - counted) :], np.int64), 1)
        self._tokens += new
        return self._counts


def _largest(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.bool_]:
    """The `count` largest; a tie at the edge goes to smaller ids."""
    edge = np.partition(weights, -count)[-count]
    keep: npt.NDArray[np.bool_] = weights > edge
    ties = np.flatnonzero(weights == edge)[: count - int(keep.sum())]
    keep[ties] = True
    return keep


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.bool_]:
    """The fewest largest weights whose share reaches top_p; at least one.

    Weights below total * (1 - top_p) / V add up to less than what may be left out, so only larger ones
    are sorted.
    """
    total = weights.sum()
    candidates = np.flatnonzero(weights >= total * (1 - top_p) / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    keep = np.zeros(len(weights), bool)
    keep[order[before < top_p * total]] = True
    return keep


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
