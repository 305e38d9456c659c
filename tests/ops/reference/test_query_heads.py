"""Queries: norm without a weight, scale, rotation, rounding."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close

from dsv4_mlx.ops.reference.query_heads import query_heads
from dsv4_mlx.ops.reference.round_trip import hadamard, q4
from dsv4_mlx.ops.types import Rounding

EPS, H, K, T = 1e-6, 3, 32, 4
Array = np.ndarray


@pytest.fixture
def q(rng: np.random.Generator) -> Array:
    return rng.standard_normal((2, T, H * K)).astype(np.float32)


@pytest.fixture
def table(rng: np.random.Generator) -> Array:
    """Wider than a head, as the tables of layers whose indexer has narrower heads."""
    turns: Array = np.exp(1j * rng.uniform(0, 6, (T, K))).astype(np.complex64)
    return turns


def turned(x: Array, table: Array) -> Array:
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * table[:, None, -K // 2 :]
    both: Array = np.stack([pairs.real, pairs.imag], -1)
    return both.reshape(x.shape)


def test_main_queries(q: Array, table: Array) -> None:
    found = query_heads(mx.array(q), mx.array(table), heads=H, eps=EPS, rounding=Rounding())
    x = q.reshape(2, T, H, K).astype(float)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * K**-0.5
    assert found.dtype == mx.float32
    assert_close(np.array(found), turned(x, table), OP, "queries")


def test_index_queries(q: Array, table: Array) -> None:
    exact = query_heads(mx.array(q), mx.array(table), heads=H, eps=None, rounding=Rounding())
    assert_close(np.array(exact), turned(q.reshape(2, T, H, K).astype(float), table), OP, "queries")
    found = query_heads(mx.array(q), mx.array(table), heads=H, eps=None, rounding=Rounding("q4", K, 32))
    assert_bits(np.array(found), np.array(q4(hadamard(exact), 32)), "rounded queries")


def test_bfloat16_queries_are_worked_on_in_float32(q: Array, table: Array) -> None:
    narrow = mx.array(q).astype(mx.bfloat16)
    found, wide = (
        query_heads(x, mx.array(table), heads=H, eps=EPS, rounding=Rounding())
        for x in (narrow, narrow.astype(mx.float32))
    )
    assert_bits(np.array(found), np.array(wide))
