"""Figures against arithmetic by hand, and intervals against simulated samples whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsv4_mlx.evaluation.intervals import (
    _student,
    distance,
    divergence,
    log_softmax,
    mean,
    perplexities,
    share,
)


def test_uniform_logits_have_the_perplexity_of_the_vocabulary() -> None:
    rows = log_softmax(np.zeros((700, 50), np.float32))
    first, second = perplexities(-rows[:, 7])
    assert (first.begin, first.end, first.tokens) == (1, 513, 512)
    assert (second.begin, second.end, second.tokens) == (513, 701, 188)
    for bucket in (first, second):
        assert bucket.perplexity.value == pytest.approx(50)
        assert bucket.perplexity.low == pytest.approx(50)


def test_divergence_by_hand(rng: np.random.Generator) -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    kl, agree = divergence(np.log(p), np.log(q))
    assert kl[0] == pytest.approx(0.25 * math.log(2))
    assert not agree[0]
    same = log_softmax(rng.standard_normal((5, 9)).astype(np.float32))
    kl, agree = divergence(same, same)
    assert not kl.any()
    assert agree.all()


@given(
    arrays(np.float32, (2, 3, 8), elements=st.floats(-200, 200, width=32)),
    st.booleans(),
)
def test_divergence_is_never_negative_nor_undefined(logits: np.ndarray, masked: bool) -> None:
    if masked:  # a token that neither model can say
        logits[:, :, 0] = -np.inf
    kl, _ = divergence(log_softmax(logits[0]), log_softmax(logits[1]))
    assert (kl >= 0).all()


def test_students_t() -> None:
    """Against the table."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
    for degrees, value in table.items():
        assert _student(degrees) == pytest.approx(value, rel=1.5e-3)


@pytest.mark.parametrize("hits", [0, 3, 50, 97, 100])
def test_the_interval_of_a_share_covers_as_it_says(hits: int, rng: np.random.Generator) -> None:
    """Of true shares inside the interval none makes the observation a 1-in-40 rarity; outside each does."""
    agree = rng.permutation(np.arange(100) < hits)
    figure = share(agree)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    for true, rare in ((figure.low - 0.05, True), ((figure.low + figure.high) / 2, False)):
        if 0 < true < 1:
            draws = rng.binomial(100, true, 20_000)
            tail = min(np.mean(draws >= hits), np.mean(draws <= hits))
            assert (tail < 0.025) == rare


def like(rng: np.random.Generator, samples: int, count: int, near: float) -> np.ndarray:
    """Normal numbers [samples, count]; neighbours have the correlation `near`."""
    noise = rng.standard_normal((samples, count))
    found = np.empty_like(noise)
    found[:, 0] = noise[:, 0]
    for i in range(1, count):
        found[:, i] = near * found[:, i - 1] + math.sqrt(1 - near**2) * noise[:, i]
    return found


@pytest.mark.parametrize(("count", "near"), [(300, 0.0), (300, 0.5), (3000, 0.5), (3000, 0.8)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    count: int, near: float, rng: np.random.Generator
) -> None:
    """Means of skewed values, and shares, of which neighbours are alike; 95 of 100 are wanted."""
    samples = like(rng, 600, count, near)
    values, hits = np.exp(0.5 * samples), samples < 1.6448536
    means, shares = [mean(one) for one in values], [share(one) for one in hits]
    covered = np.mean([m.low <= math.exp(0.125) <= m.high for m in means])
    assert 0.92 <= covered <= 0.985
    assert 0.91 <= np.mean([s.low <= 0.95 <= s.high for s in shares]) <= 0.985
    if near:  # as if they were independent, far fewer would
        narrow = [1.96 * one.std(ddof=1) / math.sqrt(count) for one in values]
        naive = np.mean([abs(m.value - math.exp(0.125)) <= n for m, n in zip(means, narrow, strict=True)])
        assert naive < 0.85


def test_of_few_values_little_is_said() -> None:
    one = mean(np.array([2.0]))
    assert (one.value, one.low, one.high) == (2.0, -math.inf, math.inf)
    two = mean(np.array([1.0, 3.0]))
    assert two.high - two.value == pytest.approx(12.706)
    alone = share(np.array([True]))
    assert (alone.value, alone.high) == (1.0, 1.0)
    assert alone.low < 0.3
    found = distance(np.array([0.5]), np.array([True]))
    assert (found.kl.low, found.kl.high) == (0.0, math.inf)
