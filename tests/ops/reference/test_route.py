"""Router: scores, choice, ties, weights."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_close

from dsv4_mlx.ops.reference.route import route, route_hashed


def scores(x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    logits = x.astype(np.float64) @ gate.astype(np.float64).T
    return np.asarray(np.sqrt(np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0)))


@pytest.mark.parametrize(("experts", "count"), [(256, 6), (7, 3), (5, 5), (9, 2)])
def test_route_against_numpy(rng: np.random.Generator, experts: int, count: int) -> None:
    x = rng.standard_normal((2, 33, 24)).astype(np.float32)
    gate = rng.standard_normal((experts, 24)).astype(np.float32)
    bias = rng.standard_normal(experts).astype(np.float32)
    ids, weights = route(mx.array(x), mx.array(gate), mx.array(bias), count=count, scale=1.5)
    p = scores(x, gate)
    expected = np.argsort(-(p + bias), axis=-1, kind="stable")[..., :count]
    assert np.array_equal(np.array(ids), expected)
    chosen = np.take_along_axis(p, expected, -1)
    assert weights.dtype == mx.float32
    assert_close(np.array(weights), 1.5 * chosen / chosen.sum(-1, keepdims=True), OP, "weights")


def test_bias_decides_the_choice_but_not_the_weight() -> None:
    x, gate = mx.array([[[1.0]]]), mx.array([[3.0], [2.0], [1.0]])
    bias = mx.array([0.0, -50.0, 50.0])
    ids, weights = route(x, gate, bias, count=2, scale=1.0)
    assert np.array(ids).tolist() == [[[2, 0]]]
    p = scores(np.ones((1, 1)), np.array([[1.0], [3.0]]))[0]
    assert_close(np.array(weights)[0, 0], p / p.sum(), OP, "weights")


@pytest.mark.parametrize("experts", [8, 256, 384])
def test_a_tie_goes_to_the_smaller_id(rng: np.random.Generator, experts: int) -> None:
    x = mx.array(rng.standard_normal((3, 50, 4)).astype(np.float32))
    gate = mx.zeros((experts, 4))
    levels = rng.integers(0, 3, experts).astype(np.float32)  # many equal scores
    ids, _ = route(x, gate, mx.array(levels), count=6, scale=1.0)
    expected = np.argsort(-levels, kind="stable")[:6]
    assert (np.array(ids) == expected).all()


def test_extreme_logits_stay_finite() -> None:
    x = mx.array([[[1.0]]])
    gate = mx.array([[200.0], [-200.0], [0.0], [-60.0]])
    ids, weights = route(x, gate, mx.zeros(4), count=2, scale=2.5)
    assert np.array(ids).tolist() == [[[0, 2]]]
    assert np.isfinite(np.array(weights)).all()
    assert float(mx.sum(weights)) == pytest.approx(2.5)


def test_hashed_ids_are_kept_in_order_with_the_routers_weights(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 9, 16)).astype(np.float32)
    gate = rng.standard_normal((12, 16)).astype(np.float32)
    given = np.stack([rng.permutation(12)[:4] for _ in range(9)])[None].astype(np.int32)
    ids, weights = route_hashed(mx.array(x), mx.array(gate), mx.array(given), scale=1.5)
    assert np.array_equal(np.array(ids), given)
    chosen = np.take_along_axis(scores(x, gate), given, -1)
    assert_close(np.array(weights), 1.5 * chosen / chosen.sum(-1, keepdims=True), OP, "weights")
