"""The device's sampler against its definition in NumPy: the same token, whatever the row and the options."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from engine.numpy_sampler import Floats, chosen
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4_mlx.engine.chooser import likelihood
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.sampler import Sampler, noise

FULL = 129_280
OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top-p": {"top_p": 0.95},
    "top-k": {"top_k": 40, "temperature": 1.3},
    "min-p": {"min_p": 0.02},
    "all": {"temperature": 0.6, "top_k": 200, "top_p": 0.9, "min_p": 0.001, "logit_bias": {7: 4.0}},
}
ROWS = ("usual", "sharp", "ties", "masked", "peak", "flat")


def row_of(kind: str, size: int, seed: int) -> Floats:
    """float32 [size]."""
    rng = np.random.default_rng(seed)
    row = (rng.standard_normal(size) * (8 if kind == "sharp" else 3)).astype(np.float32)
    if kind == "ties":
        return np.round(row)
    if kind == "masked":
        row[rng.random(size) < 0.9] = -np.inf
        row[size // 2] = 1
    if kind == "peak":
        row[size // 3] = 60
    return np.ones(size, np.float32) if kind == "flat" else row


def differences(kind: str, size: int, seeds: range) -> list[tuple[str, int]]:
    """Where device and NumPy choose differently, over all sets of options."""
    found = []
    for seed in seeds:
        row = row_of(kind, size, seed)
        for name, knobs in OPTIONS.items():
            options = SamplingOptions(seed=seed, **knobs)
            if int(Sampler(options)(mx.array(row), range(seed))) != chosen(row, options, range(seed)):
                found.append((name, seed))
    return found


@pytest.mark.parametrize("kind", ROWS)
def test_device_and_numpy_choose_the_same(kind: str) -> None:
    assert differences(kind, 3000, range(8)) == []


@pytest.mark.long
@pytest.mark.parametrize(("kind", "count"), [("usual", 600), ("sharp", 400), *((k, 20) for k in ROWS[2:])])
def test_device_and_numpy_choose_the_same_of_a_full_vocabulary(kind: str, count: int) -> None:
    assert differences(kind, FULL, range(count)) == []


logits = st.one_of(st.floats(-40, 40, width=32), st.sampled_from([0.0, 1.0, 2.0]))


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(logits, min_size=2, max_size=24),
    options=st.builds(
        SamplingOptions,
        temperature=st.one_of(st.sampled_from([0.0, 1.0, 1e-3]), st.floats(0.01, 100)),
        top_k=st.integers(0, 26),
        top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
        min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.7]),
        frequency_penalty=st.sampled_from([0.0, -0.3]),
        logit_bias=st.dictionaries(st.integers(0, 1), st.floats(-10, 10, width=32), max_size=2),
        seed=st.integers(0, 2**63 - 1),
    ),
    tokens=st.lists(st.integers(0, 1), max_size=6),
    hidden=st.one_of(st.none(), st.integers(0, 1)),
)
def test_any_options_choose_as_their_definition(
    row: list[float], options: SamplingOptions, tokens: list[int], hidden: int | None
) -> None:
    given_row = np.array(row, np.float32)
    mask = None if hidden is None else np.arange(len(row)) != hidden
    found = Sampler(options, prompt=2)(mx.array(given_row), tokens, mask)
    assert int(found) == chosen(given_row, options, tokens, 2, mask)


def test_noise_that_was_prepared_is_the_noise() -> None:
    """Made ahead, or for another position than what comes: the draws are the same."""
    row, options = mx.array(row_of("usual", 500, 1)), SamplingOptions(seed=3)
    plain = [int(Sampler(options)(row, range(n))) for n in range(30)]
    sampler, found = Sampler(options), []
    for n in range(30):
        found.append(int(sampler(row, range(n))))
        sampler.prepare(n + 1 + n % 3)
    assert found == plain


def test_noise_is_finite_and_a_gumbel_variate() -> None:
    values = noise(SamplingOptions(seed=9, temperature=2.0), 5, 200_000)
    assert values.dtype == np.float32 and np.isfinite(values).all()
    assert abs(values.mean() - 2 * np.euler_gamma) < 0.03
    assert abs(values.std() - 2 * np.pi / np.sqrt(6)) < 0.03


@pytest.mark.parametrize("count", (0, 1, 5, 50))
def test_log_probabilities_are_those_of_float64(count: int) -> None:
    """Ties, both zeros' neighbours and negative logits among them; as many alternatives as there are."""
    rows = np.stack([row_of(kind, 40, 2) for kind in ("usual", "ties", "peak", "flat")])
    tokens = np.array([3, 0, 39, 7])
    exact = rows.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True)) + exact.max(
        -1, keepdims=True
    )
    found = likelihood(mx.array(rows), mx.array(tokens, mx.int32), count).read()
    for row, wanted, token, (own, top) in zip(rows, exact, tokens, found, strict=True):
        assert own == pytest.approx(wanted[token], abs=1e-5)
        assert [id for id, _ in top] == np.argsort(-row, kind="stable")[:count].tolist()
        assert [value for _, value in top] == pytest.approx([wanted[id] for id, _ in top], abs=1e-5)
