"""Experts: clamped SwiGLU, weights, quantised and plain banks, against numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close
from oracle.official import E2M1, E8M0

from dsv4_mlx.ops.reference.expert_ffn import expert_ffn, swiglu
from dsv4_mlx.ops.types import Bank

Array = np.ndarray
E, D, INNER, A = 6, 64, 32, 3


def slow(x: Array, ids: Array, weights: Array, gate_up: Array, down: Array, limit: float) -> Array:
    out = np.zeros(x.shape)
    for b, t in np.ndindex(*x.shape[:2]):
        for expert, weight in zip(ids[b, t], weights[b, t], strict=True):
            both = gate_up[expert].astype(np.float64) @ x[b, t]
            gate, up = np.minimum(both[:INNER], limit), np.clip(both[INNER:], -limit, limit)
            out[b, t] += down[expert].astype(np.float64) @ (gate / (1 + np.exp(-gate)) * up * weight)
    return out


@pytest.fixture
def given(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    x = rng.standard_normal((2, 5, D)).astype(np.float32)
    ids = np.stack([rng.permutation(E)[:A] for _ in range(10)]).reshape(2, 5, A).astype(np.uint32)
    return x, ids, rng.random((2, 5, A)).astype(np.float32)


def test_plain_bank(given: tuple[Array, Array, Array], rng: np.random.Generator) -> None:
    x, ids, weights = given
    gate_up = rng.standard_normal((E, 2 * INNER, D)).astype(np.float32) / 4
    down = rng.standard_normal((E, D, INNER)).astype(np.float32)
    arrays = mx.array(x), mx.array(ids), mx.array(weights)
    found = expert_ffn(*arrays, Bank(mx.array(gate_up)), Bank(mx.array(down)), 1.5)
    assert found.dtype == mx.float32
    assert_close(np.array(found), slow(x, ids, weights, gate_up, down, 1.5), OP, "experts")


def quantised(rng: np.random.Generator, rows: int, columns: int) -> tuple[Bank, Array]:
    """Random FP4 codes with scales, as MLX takes them and as numbers."""
    codes = rng.integers(0, 256, (E, rows, columns // 2)).astype(np.uint8)
    scales = rng.integers(122, 127, (E, rows, columns // 32)).astype(np.uint8)
    values = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(E, rows, columns)
    values = values * np.repeat(E8M0[scales], 32, axis=-1)
    bank = Bank(mx.array(codes.view(np.uint32)), mx.array(scales), None, "mxfp4", 4, 32)
    return bank, values


def test_fp4_bank(given: tuple[Array, Array, Array], rng: np.random.Generator) -> None:
    x, ids, weights = given
    gate_up, wide = quantised(rng, 2 * INNER, D)
    down, narrow = quantised(rng, D, INNER)
    found = expert_ffn(mx.array(x), mx.array(ids), mx.array(weights), gate_up, down, 1.0)
    assert_close(np.array(found), slow(x, ids, weights, wide, narrow, 1.0), OP, "experts")


def test_rows_do_not_depend_on_their_neighbours(
    given: tuple[Array, Array, Array], rng: np.random.Generator
) -> None:
    x, ids, weights = (mx.array(a) for a in given)
    gate_up, _ = quantised(rng, 2 * INNER, D)
    down, _ = quantised(rng, D, INNER)
    whole = np.array(expert_ffn(x, ids, weights, gate_up, down, 1.0))
    alone = np.array(expert_ffn(x[:1, 2:3], ids[:1, 2:3], weights[:1, 2:3], gate_up, down, 1.0))
    assert_close(alone, whole[:1, 2:3], OP, "one row alone")


def test_the_clamp_is_one_sided_for_the_gate() -> None:
    gates = np.array([-50, -11, -1, 0, 9, 10, 11, 50], np.float32)
    ups = np.array([-50, -10, 5, 1, 9, 10, 11, 50], np.float32)
    found = np.array(swiglu(mx.array(np.concatenate([gates, ups])), 10.0))
    gate, up = np.minimum(gates.astype(float), 10), np.clip(ups.astype(float), -10, 10)
    assert_close(found, gate / (1 + np.exp(-gate)) * up, OP, "swiglu")
    assert found[0] != 0 and found[-1] == found[-3]


def test_weight_zero_adds_nothing(given: tuple[Array, Array, Array], rng: np.random.Generator) -> None:
    x, ids, weights = given
    gate_up, down = (rng.standard_normal(s).astype(np.float32) for s in ((E, 2 * INNER, D), (E, D, INNER)))
    weights[..., 1] = 0
    banks = Bank(mx.array(gate_up)), Bank(mx.array(down))
    before = expert_ffn(mx.array(x), mx.array(ids), mx.array(weights), *banks, 10.0)
    ids[..., 1] = (ids[..., 1] + 1) % E
    after = expert_ffn(mx.array(x), mx.array(ids), mx.array(weights), *banks, 10.0)
    assert_bits(np.array(after), np.array(before))
