"""The comparisons themselves: each must fail, and say where, when it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compare import LOGITS, assert_bits, assert_close, assert_logits, assert_official
from oracle.goldens import Array, Prompt, summary

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 50, 40)
LOGIT_ROWS = (RNG.standard_normal((40, 50)) * 3).astype(np.float32)


def prompt() -> Prompt:
    arrays = {**summary(TOKENS, LOGIT_ROWS, columns=5, rows=12)}
    std = float(arrays.pop("std"))
    return Prompt(name="sample[0]", split=7, std=std, **arrays)


def changed(position: int, entry: int, by: float) -> Array:
    logits = LOGIT_ROWS.copy()
    logits[position, entry] += by * prompt().std
    return logits


def test_equal_logits_pass_and_measure_zero() -> None:
    assert assert_logits(LOGIT_ROWS, prompt()) == 0
    measured = assert_logits(changed(0, 3, 0.5 * LOGITS), prompt())
    assert measured == pytest.approx(0.5 * LOGITS, rel=0.05)


def test_difference_names_position_and_entry() -> None:
    kept = prompt()
    row, column = int(kept.rows[4]), int(kept.columns[2])
    with pytest.raises(AssertionError, match=rf"kept rows(.|\n)*first at \({row}, 3\): actual"):
        assert_logits(changed(row, 3, 2 * LOGITS), kept)
    other = next(t for t in range(40) if t not in kept.rows)
    with pytest.raises(AssertionError, match=rf"kept columns(.|\n)*first at \({other}, {column}\): actual"):
        assert_logits(changed(other, column, -2 * LOGITS), kept)


def test_later_rows_are_compared_at_their_positions() -> None:
    kept = prompt()
    assert assert_logits(LOGIT_ROWS[7:], kept, start=7) == 0
    with pytest.raises(AssertionError, match=r"first at \(39, 3\)"):
        assert_logits(changed(39, 3, 1.0)[7:], kept, start=7)
    with pytest.raises(AssertionError, match=r"shape is \(33, 50\), expected \(40, 50\)"):
        assert_logits(LOGIT_ROWS[7:], kept)
    with pytest.raises(AssertionError, match="differ"):
        assert_logits(LOGIT_ROWS[:-1], kept, start=1)


def test_other_first_token_is_found_where_nothing_else_is_kept() -> None:
    kept = prompt()
    t = next(t for t in range(40) if t not in kept.rows)
    entry = next(e for e in range(50) if e not in kept.columns and e != kept.top1[t])
    with pytest.raises(AssertionError, match=rf"first at {t}: actual {entry}, expected {kept.top1[t]}"):
        assert_logits(changed(t, entry, 10), kept)
    undecided = replace(kept, gap=np.zeros_like(kept.gap))
    assert_logits(changed(t, entry, 10), undecided)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_fails_anywhere(value: float) -> None:
    kept = prompt()
    t = next(t for t in range(40) if t not in kept.rows)
    logits = LOGIT_ROWS.copy()
    logits[t, next(e for e in range(50) if e not in kept.columns)] = value
    with pytest.raises(AssertionError, match=f"at position {t}"):
        assert_logits(logits, kept)


def test_wrong_kinds_of_reference_fail() -> None:
    with pytest.raises(AssertionError, match="floating point"):
        assert_logits(LOGIT_ROWS.astype(np.int32), prompt())
    with pytest.raises(AssertionError, match="degenerate"):
        assert_close(np.zeros((3, 4)), np.zeros((3, 4)), 1)
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_close(np.zeros((0, 4)), np.zeros((0, 4)), 1)


def test_close_uses_the_reference_as_unit() -> None:
    assert assert_close(changed(3, 4, 1e-3), LOGIT_ROWS, 2e-3) == pytest.approx(1e-3, rel=1e-2)
    with pytest.raises(AssertionError, match=r"1 of 2000 values(.|\n)*first at \(3, 4\)"):
        assert_close(changed(3, 4, 3e-3), LOGIT_ROWS, 2e-3)
    with pytest.raises(AssertionError, match="nan"):
        assert_close(changed(3, 4, float("nan")), LOGIT_ROWS, 2e-3)


def test_official_allows_single_positions_only() -> None:
    wide = np.tile(LOGIT_ROWS, (10, 1))
    actual = wide.copy()
    actual[5] = actual[5][::-1]
    median, share = assert_official(actual, wide)
    assert median == 0 and share == pytest.approx(399 / 400)
    actual[:40] = actual[:40, ::-1]
    with pytest.raises(AssertionError, match="first position that is more than 0.0001 std away: 0"):
        assert_official(actual, wide)
    with pytest.raises(AssertionError, match="median difference"):
        assert_official(wide + 1e-3, wide)
    actual = wide.copy()
    actual[7, 7] = np.nan
    with pytest.raises(AssertionError, match="away: 7"):
        assert_official(actual, wide)


def test_bits_tell_zeros_apart() -> None:
    left = np.array([1, -0.0], dtype=np.float32)
    assert_bits(left, left.copy())
    with pytest.raises(AssertionError, match=r"first at \(1,\): actual 0.0 \(0x00000000\), expected -0.0"):
        assert_bits(np.abs(left), left)
    with pytest.raises(AssertionError, match="dtypes"):
        assert_bits(left.astype(np.float64), left)
    with pytest.raises(AssertionError, match="shape"):
        assert_bits(left[:1], left)
