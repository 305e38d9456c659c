"""Compressor: groups of tokens -> rows, against a loop in numpy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close

from dsv4_mlx.ops.reference.compress import compress, pool_groups
from dsv4_mlx.ops.reference.round_trip import rounded
from dsv4_mlx.ops.types import Rounding

Array = np.ndarray
EPS = 1e-6


def table(positions: Array, pairs: int) -> Array:
    angles = positions[:, None] * (0.7 ** np.arange(pairs))
    return np.asarray(np.exp(1j * angles), dtype=np.complex64)


def whole(rope: Array, width: int) -> mx.array:
    """The table of all channels: unrotated ones first."""
    ones = np.ones((len(rope), width // 2 - rope.shape[1]), np.complex64)
    return mx.array(np.concatenate([ones, rope], axis=1))


def finished(pooled: Array, weight: Array, rope: Array) -> Array:
    """Norm, then rotation of the last channels: pooled [K], rope complex [R / 2]."""
    row = pooled / np.sqrt((pooled**2).mean() + EPS) * weight
    kept = len(row) - 2 * len(rope)
    pairs = (row[kept::2] + 1j * row[kept + 1 :: 2]) * rope
    return np.concatenate([row[:kept], np.stack([pairs.real, pairs.imag], -1).ravel()])


def pool(values: Array, gates: Array) -> Array:
    """values, gates [tokens, K] -> the channelwise gated mean [K]."""
    p = np.exp(gates - gates.max(0))
    return np.asarray((values * p).sum(0) / p.sum(0))


def arrays(rng: np.random.Generator, groups: int, ratio: int, width: int) -> tuple[Array, Array]:
    shape = (2, groups, ratio, width)
    return rng.standard_normal(shape).astype(np.float32), 3 * rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("groups", "ratio"), [(1, 128), (3, 128), (5, 4)])
def test_separate_groups(rng: np.random.Generator, groups: int, ratio: int) -> None:
    values, gates = arrays(rng, groups, ratio, 24)
    weight = rng.standard_normal(24).astype(np.float32)
    rope = table(np.arange(groups) * ratio, 4)
    found = pool_groups(
        mx.array(values),
        mx.array(gates),
        mx.array(weight),
        whole(rope, 24),
        overlap=False,
        first=True,
        eps=EPS,
    )
    expected = [
        [
            finished(pool(values[b, g].astype(float), gates[b, g].astype(float)), weight, rope[g])
            for g in range(groups)
        ]
        for b in range(2)
    ]
    assert found.dtype == mx.float32
    assert_close(np.array(found), np.array(expected), OP, "compressed rows")


def overlapping(values: Array, gates: Array, weight: Array, rope: Array, first: bool) -> Array:
    """Row e: tokens of group e - 1 by their first half of the channels, of group e by their second."""
    batch, groups, _, width = values.shape
    half, rows = width // 2, []
    v, g = values.astype(np.float64), gates.astype(np.float64)
    for b in range(batch):
        for e in range(0 if first else 1, groups):
            parts = [(v[b, e, :, half:], g[b, e, :, half:])]
            if e:
                parts.append((v[b, e - 1, :, :half], g[b, e - 1, :, :half]))
            pooled = pool(*(np.concatenate(both) for both in zip(*parts, strict=True)))
            rows.append(finished(pooled, weight, rope[e if first else e - 1]))
    return np.array(rows).reshape(batch, -1, half)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("groups", [2, 6])
def test_overlapping_groups(rng: np.random.Generator, groups: int, first: bool) -> None:
    values, gates = arrays(rng, groups, 4, 48)
    weight = rng.standard_normal(24).astype(np.float32)
    rope = table(np.arange(groups if first else groups - 1) * 4, 3)
    found = pool_groups(
        mx.array(values),
        mx.array(gates),
        mx.array(weight),
        whole(rope, 24),
        overlap=True,
        first=first,
        eps=EPS,
    )
    expected = overlapping(values, gates, weight, rope, first)
    assert_close(np.array(found), expected, OP, "compressed rows")


def test_the_first_row_has_no_predecessor(rng: np.random.Generator) -> None:
    """One group at position 0: the overlap half of its own channels plays no part."""
    values, gates = arrays(rng, 1, 4, 16)
    weight, rope = mx.ones(8), whole(table(np.zeros(1), 2), 8)

    def row() -> Array:
        return np.array(
            pool_groups(mx.array(values), mx.array(gates), weight, rope, overlap=True, first=True, eps=EPS)
        )

    before = row()
    values[..., :8], gates[..., :8] = 1e6, 1e6
    assert_bits(row(), before)
    assert np.isfinite(before).all()


def test_cut_between_groups_changes_nothing(rng: np.random.Generator) -> None:
    values, gates = arrays(rng, 6, 4, 48)
    weight, rope = mx.array(rng.standard_normal(24).astype(np.float32)), table(np.arange(6) * 4, 3)

    def rows(start: int, end: int, first: bool) -> Array:
        made = whole(rope[start if first else start + 1 : end], 24)
        v, g = mx.array(values[:, start:end]), mx.array(gates[:, start:end])
        return np.array(pool_groups(v, g, weight, made, overlap=True, first=first, eps=EPS))

    uncut = rows(0, 6, True)
    assert_close(np.concatenate([rows(0, 2, True), rows(1, 6, False)], axis=1), uncut, OP)


def test_gates_are_per_channel_and_saturate() -> None:
    """Channel 0 picks token 1, channel 1 picks token 2, whatever the size of the gates."""
    values = mx.array([[[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]]])
    gates = mx.array([[[[0.0, 0.0], [1e4, 0.0], [0.0, 1e4], [-1e4, -1e4]]]])
    rope = mx.array(np.ones((1, 1), np.complex64))
    found = np.array(pool_groups(values, gates, mx.ones(2), rope, overlap=False, first=True, eps=EPS))
    expected = np.array([2.0, 30.0]) / np.sqrt((4 + 900) / 2)
    assert found.ravel() == pytest.approx(expected)


@pytest.mark.parametrize("offset", [0, 4, 12])
def test_groups_of_a_ring(rng: np.random.Generator, offset: int) -> None:
    """Rows from `offset` on, round the end of the ring; values and gates from column `at`; then Q8."""
    ring = rng.standard_normal((2, 16, 50)).astype(np.float32)
    weight = mx.array(rng.standard_normal(8).astype(np.float32))
    rope = whole(table(np.array([4.0]), 2), 8)
    options: dict[str, Any] = {"overlap": True, "first": False, "eps": EPS}
    rounding = Rounding("q8", 4, 4)
    found = compress(
        mx.array(ring), offset, weight, rope, ratio=4, at=10, rounding=rounding, dtype=mx.bfloat16, **options
    )
    rows = np.roll(ring, -offset, axis=1)[:, :8].reshape(2, 2, 4, 50)
    parts = mx.array(rows[..., 10:26]), mx.array(rows[..., 26:42])
    expected = rounded(pool_groups(*parts, weight, rope, **options), rounding).astype(mx.bfloat16)
    assert found.dtype == mx.bfloat16
    assert_bits(np.array(found.astype(mx.float32)), np.array(expected.astype(mx.float32)), "rows of a ring")
