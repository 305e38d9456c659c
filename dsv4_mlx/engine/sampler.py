"""Logits -> the next token.

A draw depends on (seed, position) and the logits, on nothing else: what other requests do can't change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dsv4_mlx.errors import UsageError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. The defaults are the checkpoint's own: temperature 1, nothing cut off.

    Order: logit_bias, repetition, presence and frequency penalties; temperature; top_k; top_p; min_p.
    temperature 0 takes the largest logit (a tie: the smallest id). Penalties look at all tokens so far,
    the prompt included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(0 <= self.temperature <= 100, "temperature", self.temperature, "0 to 100")
        _require(0 < self.top_p <= 1, "top-p", self.top_p, "above 0, up to 1")
        _require(self.top_k >= 0, "top-k", self.top_k, "0 (all) or more")
        _require(0 <= self.min_p <= 1, "min-p", self.min_p, "0 to 1")
        _require(0 < self.repetition_penalty <= 100, "repetition-penalty", self.repetition_penalty, "above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(abs(getattr(self, name)) <= 100, name, getattr(self, name), "-100 to 100")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        _require("" not in self.stop_strings, "stop", "an empty string", "text")


class Sampler:
    """Chooses tokens by one set of options."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options

    def __call__(self, logits: Floats, tokens: Sequence[int]) -> int:
        """logits float32 [V] after `tokens` -> the token at position len(tokens)."""
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
        penalised = (o.repetition_penalty, o.presence_penalty, o.frequency_penalty) != (1.0, 0.0, 0.0)
        if not penalised and not o.logit_bias:
            return logits
        logits = logits.copy()
        for token, bias in o.logit_bias.items():
            if 0 <= token < len(logits):
                logits[token] += np.float32(bias)
        if penalised and len(tokens):
            ids, counts = np.unique(np.asarray(tokens), return_counts=True)
            seen = logits[ids]
            factor = np.float32(o.repetition_penalty)
            seen = np.where(seen > 0, seen / factor, seen * factor)
            logits[ids] = seen - np.float32(o.presence_penalty) - np.float32(o.frequency_penalty) * counts
        return logits

    def _kept(self, logits: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Ids that can be drawn, in order of id, and their weights (not normalised)."""
        o = self.options
        scaled = logits.astype(np.float64) / o.temperature
        weights = np.exp(scaled - scaled.max())
        keep = np.ones(len(weights), bool)
        if 0 < o.top_k < len(weights):
            keep = _largest(weights, o.top_k)
        if o.top_p < 1:
            keep &= _nucleus(np.where(keep, weights, 0.0), o.top_p)
        if o.min_p > 0:
            keep &= weights >= o.min_p  # the largest weight is 1
        ids = np.flatnonzero(keep)
        return ids, weights[ids]


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


def _require(true: bool, name: str, found: object, expected: str) -> None:
    if not true:
        raise UsageError(f"{name} is {found}, expected {expected}")
