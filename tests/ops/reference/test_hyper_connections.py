"""hc_pre, hc_post, hc_head and Sinkhorn against numpy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close

from dsv4_mlx.ops.reference.hc_head import hc_head
from dsv4_mlx.ops.reference.hc_post import hc_post
from dsv4_mlx.ops.reference.hc_pre import hc_pre, sinkhorn
from dsv4_mlx.ops.types import StreamMix, Streams

Array = np.ndarray
C, D = 4, 24
PRE: dict[str, Any] = {"iterations": 20, "hc_eps": 1e-6, "norm_eps": 1e-6, "dtype": mx.float32}


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def rms(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6))


def slow_sinkhorn(scores: Array, iterations: int, eps: float) -> Array:
    """One matrix [C, C] at a time, by its definition: softmax of rows, columns, then rows and columns."""
    comb = np.exp(scores - scores.max(-1, keepdims=True))
    comb = comb / comb.sum(-1, keepdims=True) + eps
    for step in range(2 * iterations - 1):
        axis = 0 if step % 2 == 0 else 1
        comb = comb / (comb.sum(axis, keepdims=True) + eps)
    return np.asarray(comb)


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, Array]:
    mixes = (2 + C) * C
    return {
        "x": rng.standard_normal((2, 5, C, D)).astype(np.float32) * 3,
        "fn": rng.standard_normal((mixes, C * D)).astype(np.float32) / 8,
        "base": rng.standard_normal(mixes).astype(np.float32),
        "weight": rng.standard_normal(D).astype(np.float32),
        "out": rng.standard_normal((2, 5, D)).astype(np.float32),
    }


def test_pre_against_numpy(arrays: dict[str, Array]) -> None:
    a = arrays
    parameters = [mx.array(a[n]) for n in ("fn", "base", "weight")]
    _, u, _, mix = hc_pre(Streams(mx.array(a["x"])), *parameters, **PRE)
    x = a["x"].astype(np.float64)
    m = rms(x.reshape(2, 5, -1)) @ a["fn"].T.astype(np.float64) + a["base"]
    pre, post = sigmoid(m[..., :C]) + 1e-6, 2 * sigmoid(m[..., C : 2 * C])
    comb = np.array([slow_sinkhorn(s.reshape(C, C), 20, 1e-6) for s in m[..., 2 * C :].reshape(-1, C * C)])
    assert_close(np.array(u), rms(np.einsum("btc,btcd->btd", pre, x)) * a["weight"], OP, "input")
    assert_close(2 * np.array(mix.half_post), post, OP, "post")
    assert_close(np.array(mix.comb), comb.reshape(2, 5, C, C), OP, "comb")


def test_post_sums_over_the_first_index(arrays: dict[str, Array], rng: np.random.Generator) -> None:
    x, out = arrays["x"], arrays["out"]
    post, comb = rng.random((2, 5, C)).astype(np.float32), rng.random((2, 5, C, C)).astype(np.float32)
    found = hc_post(Streams(mx.array(x), mx.array(out), StreamMix(mx.array(post / 2), mx.array(comb))))
    expected = post[..., None].astype(float) * out[..., None, :] + np.einsum(
        "btjk,btjd->btkd", comb, x.astype(float)
    )
    assert_close(np.array(found), expected, OP, "streams")


def test_post_moves_a_stream_where_comb_says() -> None:
    x = mx.array(np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1) + 1)
    comb = np.zeros((1, 1, 4, 4), np.float32)
    comb[0, 0, 0, 3] = 1  # from stream 0 to stream 3
    mix = StreamMix(mx.array([[[0.0, 0.5, 0.0, 0.0]]]), mx.array(comb))
    found = hc_post(Streams(x, mx.array([[[10.0]]]), mix))
    assert np.array(found).ravel().tolist() == [0, 10, 0, 1]


def test_head_against_numpy(arrays: dict[str, Array], rng: np.random.Generator) -> None:
    x, weight = arrays["x"], arrays["weight"]
    fn, base = (
        rng.standard_normal((C, C * D)).astype(np.float32) / 8,
        rng.standard_normal(C).astype(np.float32),
    )
    found = hc_head(*(mx.array(a) for a in (x, fn, base, weight)), hc_eps=1e-6, norm_eps=1e-6)
    pre = sigmoid(rms(x.astype(float).reshape(2, 5, -1)) @ fn.T.astype(float) + base) + 1e-6
    expected = rms(np.einsum("btc,btcd->btd", pre, x.astype(float))) * weight
    assert_close(np.array(found), expected, OP, "head")


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_sinkhorn_sums_are_one(rng: np.random.Generator, size: float) -> None:
    scores = rng.standard_normal((50, C * C)).astype(np.float32) * size
    comb = np.array(sinkhorn(mx.array(scores), C, 20, 1e-6))
    assert np.abs(comb.sum(-2) - 1).max() < 1e-5  # ends on columns
    assert np.abs(comb.sum(-1) - 1).max() < 1e-3
    assert (comb > 0).all()


@pytest.mark.parametrize("iterations", [1, 2, 3, 20])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_sinkhorn_counts_its_passes(rng: np.random.Generator, iterations: int, size: float) -> None:
    scores = rng.standard_normal((40, C * C)).astype(np.float32) * size
    found = np.array(sinkhorn(mx.array(scores), C, iterations, 1e-6))
    expected = [slow_sinkhorn(s.reshape(C, C).astype(float), iterations, 1e-6) for s in scores]
    assert_close(found, np.array(expected), OP * 20, "comb")  # twenty divisions deep


@pytest.mark.parametrize("streams", [1, 2, 6])
def test_other_numbers_of_streams(rng: np.random.Generator, streams: int) -> None:
    scores = rng.standard_normal((9, streams * streams)).astype(np.float32)
    found = np.array(sinkhorn(mx.array(scores), streams, 3, 1e-6))
    expected = [slow_sinkhorn(s.reshape(streams, streams).astype(float), 3, 1e-6) for s in scores]
    assert np.abs(found - np.array(expected)).max() < 1e-6


def test_streams_in_bfloat16_are_mixed_in_float32(arrays: dict[str, Array]) -> None:
    """The streams' dtype is the result's; what is between is float32."""
    x = mx.array(arrays["x"]).astype(mx.bfloat16)
    fn, base = mx.array(arrays["fn"]), mx.array(arrays["base"])
    weight = mx.array(arrays["weight"])
    _, u, rounded, mix = hc_pre(Streams(x), fn, base, weight.astype(mx.bfloat16), **PRE)
    assert rounded.dtype == mx.float32
    assert (u.dtype, mix.half_post.dtype, mix.comb.dtype) == (mx.bfloat16, mx.float32, mx.float32)
    wide = hc_pre(Streams(x.astype(mx.float32)), fn, base, weight, **PRE)
    assert_close(np.array(mix.comb), np.array(wide.mix.comb), OP, "comb")
    assert hc_post(Streams(x, u, mix)).dtype == mx.bfloat16


def test_pending_output_is_mixed_in_first(arrays: dict[str, Array]) -> None:
    """hc_pre of streams with something pending is hc_post, then hc_pre; the input also comes rounded."""
    parameters = [mx.array(arrays[n]) for n in ("fn", "base", "weight")]
    before = hc_pre(Streams(mx.array(arrays["x"])), *parameters, **PRE)
    pending = Streams(before.streams, mx.array(arrays["out"]), before.mix)
    options = {**PRE, "dtype": mx.bfloat16}
    found = hc_pre(pending, *parameters, **options)
    expected = hc_pre(Streams(hc_post(pending)), *parameters, **options)
    assert_bits(np.array(found.streams), np.array(expected.streams), "streams")
    assert_bits(np.array(found.x_f32), np.array(expected.x_f32), "input")
    assert_bits(np.array(found.mix.comb), np.array(expected.mix.comb), "comb")
    assert found.x.dtype == mx.bfloat16
    assert mx.array_equal(found.x, found.x_f32.astype(mx.bfloat16)).item()
