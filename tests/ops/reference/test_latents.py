"""The two rows that one product makes: norms, rotation, rounding, against numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close

from dsv4_mlx.ops.reference.latents import latents
from dsv4_mlx.ops.reference.round_trip import q8_rows
from dsv4_mlx.ops.types import Rounding

EPS, Q, K, T = 1e-6, 24, 16, 5
Array = np.ndarray


def normed(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight)


@pytest.fixture
def arrays(rng: np.random.Generator) -> list[Array]:
    low, q_norm, kv_norm = (rng.standard_normal(s).astype(np.float32) for s in ((2, T, Q + K), Q, K))
    angles = rng.uniform(0, 6, (T, K // 2))
    angles[:, :5] = 0
    return [low, q_norm, kv_norm, np.exp(1j * angles).astype(np.complex64)]


def test_against_numpy(arrays: list[Array]) -> None:
    low, q_norm, kv_norm, table = (a.astype(complex if a.dtype.kind == "c" else float) for a in arrays)
    qr, kv = latents(*map(mx.array, arrays), eps=EPS, rounding=Rounding())
    row = normed(low[..., Q:], kv_norm)
    pairs = (row[..., ::2] + 1j * row[..., 1::2]) * table
    expected = np.stack([pairs.real, pairs.imag], -1).reshape(row.shape)
    assert_close(np.array(qr), normed(low[..., :Q], q_norm), OP, "latent")
    assert_close(np.array(kv), expected, OP, "key/value row")


def test_rounding_comes_last(arrays: list[Array]) -> None:
    _, exact = latents(*map(mx.array, arrays), eps=EPS, rounding=Rounding())
    _, found = latents(*map(mx.array, arrays), eps=EPS, rounding=Rounding("q8", 8, 4))
    assert_bits(np.array(found), np.array(q8_rows(exact, 8, 4)), "rounded row")


def test_results_have_the_activations_dtype(arrays: list[Array]) -> None:
    low, q_norm, kv_norm, table = map(mx.array, arrays)
    low, q_norm = low.astype(mx.bfloat16), q_norm.astype(mx.bfloat16)
    qr, kv = latents(low, q_norm, kv_norm, table, eps=EPS, rounding=Rounding())
    assert (qr.dtype, kv.dtype) == (mx.bfloat16, mx.bfloat16)
