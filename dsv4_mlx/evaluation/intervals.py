"""From log probabilities to figures with 95% intervals. numpy only.

Neighbouring positions of a text are alike, so a mean over them is less certain than one over as many
independent values. Intervals of means come from batch means: the values are cut into about sqrt(n)
consecutive batches, whose means are nearly independent, and Student's t is taken for them. An interval is
never narrower than that of independent values. Shares have Wilson's interval, for the number of independent
positions that would vary as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_Z = 1.959963984540054  # of a normal distribution, 95% lie within
FEWEST = 6  # batches, to say anything about their spread


@dataclass(frozen=True)
class Figure:
    """A value and the interval that holds the true one in about 95 of 100 texts of the same kind."""

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
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def perplexities(losses: Sequence[float] | Floats, first: int = 512) -> list[Bucket]:
    """losses[i]: -log p of the token with i + 1 tokens before it. Buckets begin at 1, first, 2 first, ..."""
    found, begin, end = [], 0, first
    while begin < len(losses):
        part = np.asarray(losses[begin:end], np.float64)
        loss = mean(part)
        figure = Figure(*(_exp(x) for x in (loss.value, loss.low, loss.high)))
        found.append(Bucket(begin + 1, begin + len(part) + 1, len(part), figure))
        begin, end = end, 2 * end
    return found


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def divergence(p: Floats, q: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Log probabilities [T, V] of both -> KL(p || q) [T] and whether the best tokens agree [T]."""
    with np.errstate(invalid="ignore"):  # a logit of -inf in both: 0 * (-inf + inf), which counts as 0
        terms = np.exp(p) * (p - q)
    kl: Floats = np.where(np.isneginf(p), 0.0, terms).sum(axis=-1)
    agree: npt.NDArray[np.bool_] = p.argmax(axis=-1) == q.argmax(axis=-1)
    return np.maximum(kl, 0.0), agree


def distance(kl: Floats, agree: npt.NDArray[np.bool_]) -> Distance:
    """KL divergences and agreements of consecutive positions, at least one -> their means."""
    found = mean(kl)
    # A mean of numbers that are never negative isn't either.
    found = Figure(found.value, max(0.0, found.low), found.high)
    return Distance(len(kl), found, share(agree))


def share(agree: npt.NDArray[np.bool_]) -> Figure:
    """The share of consecutive positions that agree, at least one position."""
    p, z = float(agree.mean()), _Z
    independent, batched = _variances(agree.astype(np.float64))
    count = len(agree) * (independent / batched if batched > independent else 1.0)
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Figure(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


def mean(values: Floats) -> Figure:
    """The mean of consecutive values, at least one; of a single one nothing is known but itself."""
    value, count = float(values.mean()), len(values)
    if count < 2:
        return Figure(value, -math.inf, math.inf)
    independent, batched = _variances(values)
    half = _student(count - 1) * math.sqrt(independent)
    if batched:
        half = max(half, _student(len(_batches(values)) - 1) * math.sqrt(batched))
    return Figure(value, value - half, value + half)


def _variances(values: Floats) -> tuple[float, float]:
    """Of the mean: if values were independent, and from batch means (0 for too few values)."""
    if len(values) < 2:
        return 0.0, 0.0
    independent = float(values.var(ddof=1)) / len(values)
    batches = _batches(values)
    if len(batches) < FEWEST:
        return independent, 0.0
    return independent, float(batches.var(ddof=1)) / len(batches)


def _batches(values: Floats) -> Floats:
    """Means of consecutive batches of about sqrt(n) values; what is over belongs to no batch."""
    size = max(1, math.isqrt(len(values)))
    whole = len(values) // size * size
    found: Floats = values[:whole].reshape(-1, size).mean(axis=1)
    return found


def _student(degrees: int) -> float:
    """Within this lie 95% of Student's t; from its expansion about the normal distribution.

    Right to 0.1% from 3 degrees of freedom on. Below it the table's own values stand.
    """
    if degrees < 3:
        return (math.inf, 12.706, 4.303)[degrees]
    z, v = _Z, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
