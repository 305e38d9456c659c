"""What the sampler draws, against probabilities computed here in the plainest way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.errors import UsageError

DRAWS = 100_000
WORDS = 24
PROMPT = [3, 3, 3, 3, 11, 5]
ANSWER = [7, 7, 2, 11]

KNOBS: dict[str, dict[str, Any]] = {
    "none": {},
    "hot": {"temperature": 1.7},
    "cold": {"temperature": 0.4},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "repetition": {"repetition_penalty": 1.6},
    "presence": {"presence_penalty": 1.2},
    "frequency": {"frequency_penalty": 0.7},
    "bias": {"logit_bias": {0: 2.0, 9: -3.0, 23: 1.0}},
    "all": {
        "temperature": 1.4, "top_k": 18, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2,
        "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {4: 1.5},
    },
}  # fmt: skip


def logits() -> npt.NDArray[np.float32]:
    """Values of both signs, none equal."""
    return (np.random.default_rng(5).standard_normal(WORDS) * 1.5).astype(np.float32)


def expected(knobs: dict[str, Any]) -> list[float]:
    """Probabilities of every word, by the definitions, one word at a time."""
    o = SamplingOptions(**knobs)
    raw = [float(value) for value in logits()]
    answered = Counter(ANSWER)
    for word in range(WORDS):
        raw[word] += o.logit_bias.get(word, 0.0)
        if word in PROMPT or word in ANSWER:
            raw[word] = (
                raw[word] / o.repetition_penalty if raw[word] > 0 else raw[word] * o.repetition_penalty
            )
        raw[word] -= o.frequency_penalty * answered[word] + o.presence_penalty * (answered[word] > 0)
    weights = [math.exp(value / o.temperature) for value in raw]
    ranked = sorted(range(WORDS), key=lambda word: -weights[word])
    if o.top_k:
        ranked = ranked[: o.top_k]
    total, reached, nucleus = sum(weights[word] for word in ranked), 0.0, []
    for word in ranked:
        if reached >= o.top_p * total:
            break
        nucleus.append(word)
        reached += weights[word]
    kept = [word for word in nucleus if weights[word] >= o.min_p * max(weights)]
    share = sum(weights[word] for word in kept)
    return [weights[word] / share if word in kept else 0.0 for word in range(WORDS)]


def drawn(row: npt.NDArray[np.float32], tokens: Sequence[int], **knobs: Any) -> int:
    """One draw by a sampler of its own."""
    return int(Sampler(SamplingOptions(**knobs))(mx.array(row), tokens))


def chi_square_limit(freedom: int) -> float:
    """Exceeded by chance once in a million (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.753 * math.sqrt(2 / (9 * freedom))) ** 3


def check_draws(name: str, draws: int) -> None:
    """Chi-square of `draws` draws, one per seed, against the expected probabilities."""
    row, tokens, counts = mx.array(logits()), [*PROMPT, *ANSWER], np.zeros(WORDS)
    sampler = Sampler(SamplingOptions(**KNOBS[name]), prompt=len(PROMPT))
    for seed in range(draws):
        sampler.options = SamplingOptions(**KNOBS[name], seed=seed)
        counts[int(sampler(row, tokens))] += 1
    share = np.array(expected(KNOBS[name]))
    likely = share > 0
    assert 2 <= likely.sum() <= WORDS
    assert counts[~likely].sum() == 0
    statistic = float((((counts - draws * share) ** 2)[likely] / (draws * share[likely])).sum())
    assert statistic < chi_square_limit(int(likely.sum()) - 1)


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_draws_what_it_says(name: str) -> None:
    check_draws(name, 10_000)


@pytest.mark.long
@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_over_a_hundred_thousand_draws(name: str) -> None:
    check_draws(name, DRAWS)


def test_positions_draw_independently() -> None:
    """One seed along a sequence, which is how it is used: shares, and pairs of neighbours."""
    row, sampler = mx.array(logits()), Sampler(SamplingOptions(seed=11))
    drawn = np.array([int(sampler(row, range(position))) for position in range(DRAWS)])
    share = np.array(expected({}))
    counts = np.bincount(drawn, minlength=WORDS)
    assert float(((counts - DRAWS * share) ** 2 / (DRAWS * share)).sum()) < chi_square_limit(WORDS - 1)
    pairs = np.bincount(drawn[:-1] * WORDS + drawn[1:], minlength=WORDS * WORDS)
    both = (DRAWS - 1) * np.outer(share, share).reshape(-1)
    often = both >= 5  # where the approximation holds
    assert float(((pairs - both) ** 2 / both)[often].sum()) < chi_square_limit(int(often.sum()) - 1)


def test_a_draw_depends_on_seed_and_position_only() -> None:
    row = logits()
    alone = [drawn(row, range(n), seed=4) for n in range(200)]
    assert [drawn(row, range(n), seed=4) for n in reversed(range(200))] == alone[::-1]
    assert len(set(alone)) > 10
    assert [drawn(row, range(n), seed=5) for n in range(200)] != alone
    np.random.seed(0)
    assert drawn(row, range(199), seed=4) == alone[-1]


def test_temperature_zero_takes_the_first_of_the_largest() -> None:
    row = np.array([0.0, 2.0, 2.0, -1.0], np.float32)
    assert drawn(row, [], temperature=0) == 1
    assert drawn(row, [], temperature=0, logit_bias={2: 0.5}) == 2
    assert drawn(row, [], temperature=1e-308) in (1, 2)


@pytest.mark.parametrize("top_k", (1, 2, 3))
def test_ties_at_the_edge_go_to_small_ids(top_k: int) -> None:
    row = np.array([1.0, 3.0, 3.0, 3.0, 3.0], np.float32)
    found = {drawn(row, [], top_k=top_k, seed=seed) for seed in range(200)}
    assert found == set(range(1, 1 + top_k))


def test_counts_follow_a_sequence_that_goes_back() -> None:
    """Tokens taken back must not stay counted, whatever comes in their place."""
    options = SamplingOptions(frequency_penalty=5.0, temperature=0)
    row = mx.array([1.0, 0.9, 0.8, 0.0])
    sampler = Sampler(options, prompt=1)
    assert int(sampler(row, [0])) == 0  # the prompt doesn't count
    assert int(sampler(row, [0, 0])) == 1
    assert int(sampler(row, [0, 0, 1])) == 2
    assert int(sampler(row, [0, 2, 1])) == 0
    assert int(sampler(row, [0, 0])) == 1


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected 0 to 100"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_k": -1}, "top-k"),
        ({"min_p": 1.1}, "min-p"),
        ({"repetition_penalty": 0.0}, "repetition-penalty"),
        ({"presence_penalty": 101.0}, "presence-penalty"),
        ({"frequency_penalty": float("inf")}, "frequency-penalty"),
        ({"logit_bias": {3: float("nan")}}, "logit-bias of token 3"),
        ({"seed": -1}, "seed"),
        ({"stop_strings": ("x", "")}, "stop"),
    ],
)
def test_impossible_options_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingOptions(**knobs)


@pytest.mark.parametrize("knobs", ({"logit_bias": {384: 1.0}}, {"stop_ids": frozenset({-1})}))
def test_ids_outside_the_vocabulary_are_refused(knobs: dict[str, Any]) -> None:
    SamplingOptions(logit_bias={383: 1.0}, stop_ids=frozenset({0})).check(384)
    with pytest.raises(UsageError, match="expected an id below 384"):
        SamplingOptions(**knobs).check(384)
