"""A row's result doesn't depend on the rows that are computed with it: the same bits alone and in a batch."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels import attend, expert_ffn, group_project, index_select
from dsv4_mlx.ops.kernels.cases import bank, routed
from dsv4_mlx.ops.types import AttendedRows

FAST = Proven(check=False)  # cases have checked these kernels


def bits(array: mx.array) -> np.ndarray:
    return np.array(array).view(np.uint32)


@pytest.mark.parametrize("tokens", [3, 33])
def test_experts(tokens: int) -> None:
    """With few tokens every row alone; with many, half of them, which is still many."""
    x, ids, weights, gate_up, down, limit = routed(tokens, 6, 3, 64, 64, "mxfp4", 1.0)
    whole = bits(expert_ffn.expert_ffn(FAST, x, ids, weights, gate_up, down, limit))
    part = slice(1, 2) if tokens == 3 else slice(7, 29)
    some = x[:, part], ids[:, part], weights[:, part]
    assert np.array_equal(bits(expert_ffn.expert_ffn(FAST, *some, gate_up, down, limit)), whole[:, part])


@pytest.mark.parametrize("tokens", [2, 33])
def test_experts_in_groups_give_the_bits_of_one_call(tokens: int) -> None:
    """As when they are paged: pairs as rows, a group of experts at a time, then sums in the list's order."""
    x, ids, weights, gate_up, down, limit = routed(tokens, 6, 4, 64, 64, "mxfp4", 1.0)
    beside = mx.random.normal(x.shape, key=mx.random.key(9))
    whole = expert_ffn.expert_ffn(FAST, x, ids, weights, gate_up, down, limit, beside)
    flat, of = np.array(ids).reshape(-1), weights.reshape(-1)
    parts = np.zeros((flat.size, x.shape[2]), np.float32)
    for group in ((0, 3), (5,), (1, 2, 4)):
        at = np.flatnonzero(np.isin(flat, group))
        one, rows = (1, len(at), 1), mx.array(at)
        given = x[0][rows // 4][None], ids.reshape(-1)[rows].reshape(one), of[rows].reshape(one)
        found = expert_ffn.expert_ffn(FAST, *given, gate_up, down, limit, chunk=tokens)
        parts[at] = np.array(found)[0]
    expected = np.zeros((tokens, x.shape[2]), np.float32)
    for a in range(4):
        expected += parts.reshape(tokens, 4, -1)[:, a]
    assert np.array_equal(np.array(whole)[0], expected + np.array(beside)[0])


@pytest.mark.parametrize("tokens", [3, 34])
def test_grouped_projection(tokens: int) -> None:
    x = mx.random.normal((1, tokens, 4, 32), key=mx.random.key(1))
    weight = bank(2, 33, 64, "affine4", 3)
    whole = bits(group_project.group_project(FAST, x, weight))
    part = slice(1, 2) if tokens == 3 else slice(5, 33)
    assert np.array_equal(bits(group_project.group_project(FAST, x[:, part], weight)), whole[:, part])


@pytest.mark.parametrize("tokens", [3, 20])
def test_attention(tokens: int) -> None:
    keys = mx.random.split(mx.random.key(2), 4)
    q = mx.random.normal((1, tokens, 8, 64), key=keys[0])
    window, rows = (
        AttendedRows(mx.random.normal((1, 40, 64), key=keys[1]), None),
        mx.random.normal((1, 50, 64), key=keys[2]),
    )
    indices = mx.stack([(mx.arange(30) * 7 + t) % 50 for t in range(tokens)]).astype(mx.uint32)[None]
    sinks, table = mx.zeros(8), mx.ones((tokens, 32), mx.complex64)
    whole = bits(attend.attend(FAST, q, window, AttendedRows(rows, None, indices), sinks, table))
    part = slice(1, 2) if tokens == 3 else slice(2, 19)
    alone = attend.attend(
        FAST, q[:, part], window, AttendedRows(rows, None, indices[:, part]), sinks, table[part]
    )
    assert np.array_equal(bits(alone), whole[:, part])


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = mx.random.split(mx.random.key(5), 3)
    q, weights = mx.random.normal((1, 5, 8, 32), key=keys[0]), mx.random.normal((1, 5, 8), key=keys[1])
    rows = mx.random.normal((1, 40, 32), key=keys[2])
    mask = mx.where(mx.arange(40) < mx.array([3, 30, 31, 35, 40])[:, None], 0.0, -mx.inf)
    whole = np.array(index_select.index_select(FAST, q, weights, rows, mask, 20))
    monkeypatch.setattr(index_select, "BLOCK", 80)
    assert np.array_equal(np.array(index_select.index_select(FAST, q, weights, rows, mask, 20)), whole)


def test_index_picks() -> None:
    keys = mx.random.split(mx.random.key(3), 3)
    q, weights = mx.random.normal((1, 3, 16, 32), key=keys[0]), mx.random.normal((1, 3, 16), key=keys[1])
    rows = mx.random.normal((1, 130, 32), key=keys[2])
    whole = np.array(index_select.index_select(FAST, q, weights, rows, None, 20))
    alone = np.array(index_select.index_select(FAST, q[:, 1:2], weights[:, 1:2], rows, None, 20))
    assert np.array_equal(alone, whole[:, 1:2])
