"""Rotary embedding: pairs, direction, inverse; and the tables it is given."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close
from oracle.numpy_model import rope_frequencies

from dsv4_mlx.config import parse_config
from dsv4_mlx.model.chunk import RopeTable, compressed_table, plain_table
from dsv4_mlx.ops.reference.rotate import rotate
from dsv4_mlx.synthetic import release_config


def test_neighbouring_channels_turn_together() -> None:
    """(a, b) -> (a cos - b sin, a sin + b cos), last channels only."""
    table = mx.array(np.exp(1j * np.array([[0, np.pi / 2, np.pi]])).astype(np.complex64))
    found = np.array(rotate(mx.array([[7.0, 8.0, 1.0, 2.0, 3.0, 4.0]]), table))
    assert found[0] == pytest.approx([7, 8, -2, 1, -3, -4], abs=1e-6)


@pytest.mark.parametrize("kept", [0, 40])
def test_against_numpy_and_back(rng: np.random.Generator, kept: int) -> None:
    x = rng.standard_normal((2, 9, 3, kept + 16)).astype(np.float32)
    angles = rng.standard_normal((9, 8)) * 1000
    factors = np.concatenate([np.ones((9, kept // 2)), np.exp(1j * angles)], axis=1)
    table = mx.array(factors.astype(np.complex64))[:, None]
    turned = rotate(mx.array(x), table)
    pairs = (x[..., kept::2] + 1j * x[..., kept + 1 :: 2].astype(np.float64)) * np.exp(1j * angles)[:, None]
    expected = np.concatenate(
        [x[..., :kept], np.stack([pairs.real, pairs.imag], -1).reshape(*x.shape[:-1], -1)], -1
    )
    assert_close(np.array(turned), expected, OP, "rotated")
    assert_bits(np.array(turned)[..., :kept], x[..., :kept])
    assert_close(np.array(rotate(turned, mx.conjugate(table))), x, OP, "and back")


def test_bfloat16_is_turned_in_float32(rng: np.random.Generator) -> None:
    x = mx.array(rng.standard_normal((4, 16)).astype(np.float32)).astype(mx.bfloat16)
    table = mx.array(np.exp(1j * rng.standard_normal((4, 8))).astype(np.complex64))
    found = rotate(x, table)
    assert found.dtype == mx.bfloat16
    wide = rotate(x.astype(mx.float32), table).astype(mx.bfloat16)
    assert mx.array_equal(found, wide)


@pytest.mark.parametrize("ratio", [0, 4])
def test_frequencies_of_the_release(ratio: int) -> None:
    raw = release_config("flash", true_size=True)
    config = parse_config(json.dumps(raw), "test")
    table = compressed_table(config) if ratio else plain_table(config)
    expected = rope_frequencies(raw, ratio)
    assert_close(table.freqs, expected, OP, "frequencies")


def test_yarn_blends_between_channels_15_and_25() -> None:
    config = parse_config(json.dumps(release_config("flash", true_size=True)), "test")
    plain = 160000.0 ** (-np.arange(32) / 32)
    found = compressed_table(config).freqs / plain
    assert found[:16] == pytest.approx(1) and found[25:] == pytest.approx(1 / 16)
    assert found[20] == pytest.approx(0.5 + 0.5 / 16)


def test_tables_are_exact_far_out() -> None:
    """The angle is a float32 product; its cosine is that of exactly this number, even at a million."""
    freqs = np.array([1.0, 0.7, 1e-4], np.float32)
    positions = np.array([0, 1, 511, 512, 65_537, 1_048_575])
    found = np.array(RopeTable(freqs, 8).at(positions))
    assert (found[:, 0] == 1).all()
    angles = (positions.astype(np.float32)[:, None] * freqs).astype(np.float64)
    assert np.abs(found[:, 1:] - np.exp(1j * angles)).max() < 1e-7


@pytest.mark.parametrize("start", [0, 1, 500, 511, 512, 5000])
@pytest.mark.parametrize("count", [1, 13, 512, 1500])
def test_cached_rows_are_the_same_rows(start: int, count: int) -> None:
    table = RopeTable(np.array([1.0, 0.01], np.float32), 6)
    for _ in range(2):
        expected = table.at(np.arange(start, start + count))
        forward, inverse = table.rows(start, count)
        assert mx.array_equal(forward, expected) and mx.array_equal(inverse, mx.conjugate(expected))
