"""Indexer: scores, the best rows, ties, visibility."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_close

from dsv4_mlx.ops.reference import index_select as module
from dsv4_mlx.ops.reference.index_select import index_scores, index_select

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def case(rng: np.random.Generator, batch: int, rows: int, heads: int, width: int, keys: int) -> Case:
    return (
        rng.standard_normal((batch, rows, heads, width)).astype(np.float32),
        rng.standard_normal((batch, rows, heads)).astype(np.float32),
        rng.standard_normal((batch, keys, width)).astype(np.float32),
    )


def hidden(seen: np.ndarray) -> mx.array:
    """What is added to the scores."""
    return mx.array(np.where(seen, np.float32(0), np.float32(-np.inf)))


def scores(q: np.ndarray, weights: np.ndarray, keys: np.ndarray) -> np.ndarray:
    products = np.einsum("bthk,bnk->bthn", q.astype(np.float64), keys.astype(np.float64))
    return np.asarray(np.einsum("bth,bthn->btn", weights.astype(np.float64), np.maximum(products, 0)))


def test_scores_against_numpy(rng: np.random.Generator) -> None:
    q, weights, keys = case(rng, 2, 7, 16, 32, 45)
    found = index_scores(mx.array(q), mx.array(weights), mx.array(keys))
    assert found.dtype == mx.float32
    assert_close(np.array(found), scores(q, weights, keys), OP, "index scores")


def test_relu_is_per_head_and_weights_are_signed() -> None:
    """One head says +3, the other -5: relu first gives 3, relu after the sum gives 0."""
    q = mx.array([[[[3.0], [-5.0]]]])
    found = index_scores(q, mx.array([[[1.0, 1.0]]]), mx.array([[[1.0]]]))
    assert float(found[0, 0, 0]) == 3
    found = index_scores(q, mx.array([[[-2.0, 1.0]]]), mx.array([[[1.0]]]))
    assert float(found[0, 0, 0]) == -6


@pytest.mark.parametrize("count", [1, 8, 45])
def test_best_rows_first(rng: np.random.Generator, count: int) -> None:
    q, weights, keys = case(rng, 2, 9, 16, 32, 45)
    indices = index_select(mx.array(q), mx.array(weights), mx.array(keys), None, count)
    expected = np.argsort(-scores(q, weights, keys), axis=-1, kind="stable")[..., :count]
    assert np.array_equal(np.array(indices), expected)


@pytest.mark.parametrize("keys", [3, 64, 257, 3000])
def test_a_tie_goes_to_the_smaller_index(rng: np.random.Generator, keys: int) -> None:
    levels = rng.integers(-1, 3, keys).astype(np.float32)  # zero and below: relu makes them equal
    q, weights = mx.ones((1, 5, 4, 1)), mx.ones((1, 5, 4))
    count = max(1, keys // 2)
    indices = index_select(q, weights, mx.array(levels[None, :, None]), None, count)
    expected = np.argsort(-np.maximum(levels, 0), kind="stable")[:count]
    assert (np.array(indices) == expected).all()


def test_all_scores_equal_takes_the_first_rows() -> None:
    indices = index_select(mx.zeros((1, 2, 4, 8)), mx.ones((1, 2, 4)), mx.ones((1, 1000, 8)), None, 16)
    assert (np.array(indices) == np.arange(16)).all()


def test_invisible_rows_come_last(rng: np.random.Generator) -> None:
    """Even when every visible row scores below zero: visibility is not a score."""
    q, weights, keys = case(rng, 1, 6, 16, 32, 20)
    weights = -np.abs(weights)
    seen = np.array([0, 1, 3, 7, 12, 20])
    visible = np.arange(20) < seen[:, None]
    indices = np.array(index_select(mx.array(q), mx.array(weights), mx.array(keys), hidden(visible), 7))
    expected = scores(q, weights, keys)[0]
    for t, number in enumerate(seen):
        kept = min(7, number)
        best = np.argsort(-expected[t, :number], kind="stable")[:kept]
        assert np.array_equal(indices[0, t, :kept], best)
        assert (indices[0, t, kept:] >= number).all()


def test_blocks_of_queries_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    q, weights, keys = case(rng, 2, 11, 16, 32, 30)
    visible = hidden(np.arange(30) < np.arange(11)[:, None] + 8)
    arrays = mx.array(q), mx.array(weights), mx.array(keys), visible
    whole = np.array(index_select(*arrays, 8))
    monkeypatch.setattr(module, "_BLOCK", 16 * 30 * 3)
    assert np.array_equal(np.array(index_select(*arrays, 8)), whole)
