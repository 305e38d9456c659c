"""From log probabilities to figures with 95% intervals. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_Z = 1.959963984540054  # of a normal distribution, 95% lie within


@dataclass(frozen=True)
class Figure:
    """A value and the interval that holds the true one in 95 of 100 samples, if positions were independent.

    Neighbouring positions of a text are not quite: read intervals as lower bounds of the doubt.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bucket:
    """Perplexity of the tokens that had `begin` to `end` - 1 tokens before them."""

    begin: int
    end: int
    tokens: int
    perplexity: Figure


@dataclass(frozen=True)
class Distance:
    """How far distributions p (the reference) and q are: mean of KL(p || q) in nats, and how often their best
    tokens are the same."""

    positions: int
    kl: Figure
    agreement: Figure


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """[T, V] -> natural log probabilities in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def perplexities(losses: Sequence[float] | Floats, first: int = 512) -> list[Bucket]:
    """losses[i]: -log p of the token with i + 1 tokens before it. Buckets double in length from `first` on."""
    found, begin, end = [], 0, first
    while begin < len(losses):
        part = np.asarray(losses[begin:end], np.float64)
        mean = _mean(part)
        figure = Figure(*(math.exp(x) for x in (mean.value, mean.low, mean.high)))
        found.append(Bucket(begin + 1, begin + len(part) + 1, len(part), figure))
        begin, end = end, 2 * end
    return found


def divergence(p: Floats, q: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Log probabilities [T, V] of both -> KL(p || q) [T] and whether the best tokens agree [T]."""
    kl: Floats = (np.exp(p) * (p - q)).sum(axis=-1)
    agree: npt.NDArray[np.bool_] = p.argmax(axis=-1) == q.argmax(axis=-1)
    return np.maximum(kl, 0.0), agree


def distance(kl: Floats, agree: npt.NDArray[np.bool_]) -> Distance:
    return Distance(len(kl), _mean(kl), share(int(agree.sum()), len(agree)))


def share(hits: int, count: int) -> Figure:
    """hits of count with Wilson's interval, which stays within 0 and 1."""
    p, z = hits / count, _Z
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Figure(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


def _mean(values: Floats) -> Figure:
    mean = float(values.mean())
    half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Figure(mean, mean - half, mean + half)
