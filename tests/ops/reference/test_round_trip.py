"""Q8, Q4 and the Hadamard transform: equal in every bit to numpy versions written apart from them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import assert_bits
from oracle import quantisers

from dsv4_mlx.ops.reference.round_trip import hadamard, q4, q8

COUNT = 1 << 20


@pytest.fixture(scope="module")
def hard() -> np.ndarray:
    """A million values: ties, powers of two, zeros, the largest, subnormals, edges of the scale."""
    return quantisers.make_hard_values(COUNT)


@pytest.mark.parametrize("block", [64, 32, 16, 8])
def test_q8_is_bit_equal(hard: np.ndarray, block: int) -> None:
    rows = hard.reshape(-1, 512)
    assert_bits(np.array(q8(mx.array(rows), block)), quantisers.q8(rows, block), "Q8")


@pytest.mark.parametrize("block", [32, 16])
def test_q4_is_bit_equal(hard: np.ndarray, block: int) -> None:
    rows = hard.reshape(-1, 128)
    assert_bits(np.array(q4(mx.array(rows), block)), quantisers.q4(rows, block), "Q4")


@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_hadamard_is_bit_equal(hard: np.ndarray, width: int) -> None:
    values = np.clip(hard, -1e30, 1e30).reshape(-1, width)  # sums must stay finite
    assert_bits(np.array(hadamard(mx.array(values))), quantisers.hadamard(values), "Hadamard")


def test_index_rows_are_bit_equal(hard: np.ndarray) -> None:
    """Both together, as the indexer applies them."""
    values = np.clip(hard, -1e30, 1e30).reshape(-1, 128)
    expected = quantisers.q4(quantisers.hadamard(values))
    assert_bits(np.array(q4(hadamard(mx.array(values)))), expected, "Q4 of Hadamard")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-4, 448.0, -448.0, 448.0 * 2.0**-30, 2.0**-149, 3e38])
def test_blocks_of_one_value(value: float) -> None:
    values = np.full((1, 64), value, np.float32)
    assert_bits(np.array(q8(mx.array(values), 64)), quantisers.q8(values, 64), "Q8")
    if abs(value) < 2.0**120:
        assert_bits(np.array(q4(mx.array(values), 32)), quantisers.q4(values, 32), "Q4")


def test_q8_known_values() -> None:
    """By hand: the largest is 448, so the scale is 1 and E4M3's own grid shows."""
    row = np.zeros((1, 16), np.float32)
    row[0, :8] = [448, 17, 18.9, -19, 0.0009765625, 0.0029296875, 208, 216]
    # steps: 2 in [16, 32), 2^-9 below 2^-6, 16 in [128, 256); a tie goes to the even code
    expected = np.zeros_like(row)
    expected[0, :8] = [448, 16, 18, -20, 0, 0.00390625, 208, 224]
    row[0, 2], expected[0, 2] = 18.9, 18
    assert_bits(np.array(q8(mx.array(row), 16)), expected, "Q8")


def test_q4_known_values() -> None:
    """By hand: the largest is 6, so the scale is 1; ties go to even codes."""
    row = np.zeros((1, 32), np.float32)
    row[0, :9] = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5.01]
    expected = np.zeros_like(row)
    expected[0, :9] = [6, 0, 1, 1, 2, 2, 4, 4, -6]
    assert_bits(np.array(q4(mx.array(row), 32)), expected, "Q4")


def test_blocks_do_not_touch_each_other() -> None:
    values = np.ones((1, 128), np.float32) * 0.3
    values[0, 64:] = 400.0
    alone = np.array(q8(mx.array(values[:, :64]), 64))
    assert_bits(np.array(q8(mx.array(values), 64))[:, :64], alone, "the first block")


def test_a_round_trip_is_idempotent(hard: np.ndarray) -> None:
    rows = mx.array(hard.reshape(-1, 512))
    once = q8(rows, 64)
    assert_bits(np.array(q8(once, 64)), np.array(once), "Q8 twice")
    once = q4(rows, 32)
    assert_bits(np.array(q4(once, 32)), np.array(once), "Q4 twice")


def test_bfloat16_rows_keep_their_dtype(rng: np.random.Generator) -> None:
    rows = mx.array(rng.standard_normal((5, 3, 128)).astype(np.float32)).astype(mx.bfloat16)
    for result in (q8(rows, 64), q4(rows), hadamard(rows)):
        assert result.dtype == mx.bfloat16 and result.shape == rows.shape
    wide = np.array(rows.astype(mx.float32))
    assert_bits(np.array(q8(rows, 64).astype(mx.float32)), quantisers.q8(wide, 64), "Q8 of bfloat16")
