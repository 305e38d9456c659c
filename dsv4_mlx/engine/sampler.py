"""Logits -> the next token.

A draw depends on (seed, position) and the logits, on nothing else: what other requests do can't change it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dsv4_mlx.engine.engine_options import SamplingOptions

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
