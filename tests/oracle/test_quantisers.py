"""Quantisers and Hadamard against brute force from the definitions, and the hard values themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import assert_bits
from numpy.typing import NDArray

from oracle.official import E2M1, E4M3, e2m1_value, e4m3_value
from oracle.quantisers import bf16, hadamard, make_hard_values, nearest_code, q4, q8

Array = NDArray[Any]


def brute_force(x: Array, block: int, codes: list[float], floor: float) -> Array:
    """The round trip by trying every scale and every code. Doubles hold all quantities exactly."""
    top, result = codes[-1], np.empty_like(x)
    for start in range(0, x.size, block):
        values = x[start : start + block].astype(np.float64)
        largest = max(float(np.abs(values).max()), floor)
        power = next(p for p in range(-126, 128) if largest <= top * 2.0**p)
        for i, value in enumerate(values):
            scaled = min(abs(float(value)) / 2.0**power, top)
            distance = [abs(scaled - code) for code in codes]
            near = [n for n, d in enumerate(distance) if d == min(distance)]
            even = min(near, key=lambda n: n % 2)
            result[start + i] = np.copysign(np.float32(codes[even] * 2.0**power), np.float32(value))
    return result


def test_known_codes() -> None:
    known = {0x00: 0.0, 0x01: 2.0**-9, 0x07: 7 * 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x7E: 448.0}
    for code, value in known.items():
        assert e4m3_value(code) == value and e4m3_value(code | 0x80) == -value
    assert np.isnan(E4M3[[0x7F, 0xFF]]).all() and np.isfinite(np.delete(E4M3, [0x7F, 0xFF])).all()
    assert [e2m1_value(code) for code in range(8)] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert np.array_equal(E2M1[8:], -E2M1[:8]) and np.signbit(E2M1[8])
    for ascending in (E4M3[:127], E2M1[:8]):
        assert (np.diff(ascending) > 0).all()


def test_q8_is_the_nearest_code() -> None:
    values = make_hard_values(4096)
    codes = [e4m3_value(code) for code in range(127)]
    for block in (64, 32):
        assert_bits(q8(values, block), brute_force(values, block, codes, float(np.float32(1e-4))))


def test_q4_is_the_nearest_code() -> None:
    values = make_hard_values(8192, seed=1)
    codes = [e2m1_value(code) for code in range(8)]
    assert_bits(q4(values), brute_force(values, 32, codes, 6 * 2.0**-126))


def test_ties_go_to_the_even_code() -> None:
    block = np.array([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, 0] + [0.0] * 20)
    expected = [6, 0, 1, 1, 2, 2, 4, 4, -0.0, -1, -4, 0] + [0.0] * 20
    assert_bits(q4(block.astype(np.float32)), np.array(expected, dtype=np.float32))


def test_scale_doubles_just_above_the_largest_code() -> None:
    row = np.full(64, 21.0, dtype=np.float32)  # between the codes 20 and 22; at twice the scale: 20 or 24
    row[0] = 448
    assert q8(row, 64)[1] == 20 and q8(row, 64)[0] == 448
    row[0] = np.nextafter(np.float32(448), np.float32(449))
    row[1] = 23
    assert q8(row, 64)[1] == 24 and q8(row, 64)[0] == 448
    row[0] = 448
    assert q8(row, 64)[1] == 24 and q8(np.where(row == 23, np.float32(22), row), 64)[1] == 22


def test_tiny_blocks_use_the_floor() -> None:
    quiet = np.full(64, 1e-7, dtype=np.float32)
    scale = 2.0**-22  # of a block whose largest value is 1e-4; 1e-7 is 0.419 of it, the nearest code 13/32
    assert_bits(q8(quiet, 64), np.full(64, 13 / 32 * scale, dtype=np.float32))
    assert not q8(np.zeros(64, dtype=np.float32), 64).any()


def test_blocks_are_independent() -> None:
    values = np.random.default_rng(0).standard_normal((3, 5, 128)).astype(np.float32)
    whole = q8(values, 64)
    assert_bits(whole[1, 2, 64:], q8(values[1, 2, 64:], 64))
    with pytest.raises(ValueError, match="multiple"):
        q8(values[..., :100], 64)


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 0.0, -0.0], np.float32)
    expected = np.array([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0, 0.0, -0.0], np.float32)
    assert_bits(bf16(values), expected)


@pytest.mark.parametrize("n", [32, 64, 128])
def test_hadamard_is_the_matrix(n: int) -> None:
    parity = np.array([[(i & j).bit_count() % 2 for j in range(n)] for i in range(n)])
    matrix = np.where(parity == 1, -1.0, 1.0) / np.sqrt(n)
    identity = hadamard(np.eye(n, dtype=np.float32))
    assert np.abs(identity - matrix).max() < 1e-8
    values = np.random.default_rng(n).standard_normal((7, n)).astype(np.float32)
    assert np.abs(hadamard(values) - values @ matrix).max() < 2e-6
    assert np.abs(hadamard(hadamard(values)) - values).max() < 2e-6
    assert np.allclose((hadamard(values) ** 2).sum(-1), (values**2).sum(-1), rtol=1e-5)


def test_hadamard_adds_in_the_stated_order() -> None:
    """Another order of stages gives other last bits: the order is pinned by a sum that shows it."""
    x = np.array([1, 2**-24, 2**-24, 2**-24], dtype=np.float32)
    assert hadamard(x)[0] == np.float32((np.float32(1) + np.float32(2**-23)) / 2)
    assert hadamard(x[[1, 0, 2, 3]])[0] == np.float32((np.float32(1) + np.float32(2**-23)) / 2)
    y = np.array([1, 2**-24, 0, 2**-24], dtype=np.float32)
    assert hadamard(y)[0] == 0.5  # (1 + tiny) + (0 + tiny), both rounded away
    with pytest.raises(ValueError, match="power of two"):
        hadamard(np.zeros(12, dtype=np.float32))


def test_hard_values_are_hard() -> None:
    values = make_hard_values(2**17)
    magnitude = np.abs(values)
    assert values.dtype == np.float32 and values.shape == (2**17,) and np.isfinite(values).all()
    zeros = values[values == 0]
    assert np.signbit(zeros).any() and not np.signbit(zeros).all()
    assert ((magnitude > 0) & (magnitude < 2.0**-126)).sum() > 1000
    mantissa, _ = np.frexp(magnitude[magnitude > 0])
    assert (mantissa == 0.5).sum() > 1000
    rows = magnitude.reshape(-1, 64).astype(np.float64)
    tops = rows.max(axis=1)
    assert (tops == 0).any()
    assert (np.frexp(tops)[0] == 0.875).sum() > 100  # 448 times a power of two
    assert (np.frexp(rows.reshape(-1, 32).max(axis=1))[0] == 0.75).sum() > 100  # 6 times one
    for codes, block in ((E4M3[:127], 64), (E2M1[:8], 32)):
        assert count_ties(magnitude.reshape(-1, block), codes.astype(np.float64)) > 1000
    with pytest.raises(ValueError, match="multiple of 1024"):
        make_hard_values(1000)


def count_ties(rows: Array, codes: Array) -> int:
    """How many values lie exactly between two codes at their block's scale."""
    middles = (codes[:-1] + codes[1:]) / 2
    top = np.maximum(rows.max(axis=1, keepdims=True), 1e-4).astype(np.float64)
    scale = 2.0 ** np.ceil(np.log2(top / codes[-1]))
    return int(np.isin(rows / scale, middles).sum())


def test_nearest_code_index() -> None:
    codes = np.array([0.0, 1.0, 2.0, 4.0])
    assert nearest_code(np.array([0, 0.5, 0.51, 1.5, 3, 3.1, 9]), codes).tolist() == [0, 0, 1, 2, 2, 3, 3]
