"""What Metal may do with floats and a CPU does not: NaN in min, inexact functions, fusing, flushing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from metal_proof import BuildError, Numerics
from metal_proof.tests.test_execute import launch

F32 = np.float32
PLAIN, WORST = Numerics(), Numerics(functions=True)
PAIRS = np.array([[np.nan, 1], [1, np.nan], [np.nan, np.nan], [1, 2], [2, 1]] * 2, F32).T
SPACES = ("", "fast::", "precise::")
Floats = npt.NDArray[np.float32]
Error = Callable[[npt.NDArray[np.float64]], Any]


def values(expressions: list[str], *inputs: Floats, numerics: Numerics = PLAIN) -> Floats:
    """A row for each expression of x0[i], x1[i], ..., from inputs of one length."""
    count = inputs[0].size
    lines = [f"y[{row * count} + i] = {text};" for row, text in enumerate(expressions)]
    body = "uint i = thread_position_in_grid.x; " + " ".join(lines)
    result = launch(
        body, list(inputs), count * len(lines), grid=(count, 1, 1), threadgroup=(min(count, 64), 1, 1),
        numerics=numerics,
    )  # fmt: skip
    return result.values().reshape(len(lines), count)


@pytest.mark.parametrize("worst", [False, True])
def test_a_nan_and_a_number(worst: bool) -> None:
    """The number, but of fast functions the worst is the NaN."""
    a, b = PAIRS
    names = [space + name for name in ("min", "max", "fmin", "fmax") for space in SPACES]
    texts = [f"{name}(x0[i], x1[i])" for name in names]
    for name, found in zip(names, values(texts, a, b, numerics=Numerics(functions=worst)), strict=True):
        of = (np.fmin, np.minimum) if "min" in name else (np.fmax, np.maximum)
        expected = of[worst and "precise" not in name](a, b)
        assert np.array_equal(found, expected, equal_nan=True), name
    one = np.array([np.nan, *range(1, 32)], F32)
    found = values(["simd_min(x0[i])", "simd_max(x0[i])"], one, numerics=Numerics(functions=worst))
    assert np.array_equal(found[:, 0], [np.nan] * 2 if worst else [1, 31], equal_nan=True)


def test_a_clamped_nan() -> None:
    x = np.full(8, np.nan, F32)
    texts = [space + text for text in ("clamp(x0[i], 2.0f, 5.0f)", "saturate(x0[i])") for space in SPACES]
    assert values(texts, x)[:, 0].tolist() == [2, 2, 2, 0, 0, 0]
    worst = values(texts, x, numerics=WORST)[:, 0]
    assert np.array_equal(worst, [np.nan, np.nan, 2, np.nan, np.nan, 0], equal_nan=True)


def test_integers_vectors_and_16_bits_have_the_rule_too() -> None:
    x = np.array([np.nan] * 8, F32)
    texts = [
        "max(float4(x0[i]), float4(3.0f)).z + max(2, 1) + min(4u, 3u)",
        "float(max(half(x0[i]), half(3))) + float(min(bfloat(x0[i]), bfloat(1)))",
    ]
    assert values(texts, x)[:, 0].tolist() == [8, 4]
    assert np.isnan(values(texts, x, numerics=WORST)).all()


POSITIVE = np.geomspace(1e-30, 1e30, 4001, dtype=F32)
FAR = np.where((POSITIVE < 0.5) | (POSITIVE > 2), POSITIVE, F32(3))
SPREAD = np.linspace(-80, 80, 4001, dtype=F32)
TURN = np.linspace(-2, 2, 4001, dtype=F32)
NEAR_1 = np.linspace(0.5, 2, 4001, dtype=F32)
# Function, arguments, error by argument: of fast and precise functions, in ulps or (negative) absolute.
STATED: list[tuple[str, Floats, Error, float]] = [
    ("exp", SPREAD, lambda x: 3 + np.floor(np.abs(2 * x)), 4),
    ("exp2", SPREAD, lambda x: 3 + np.floor(np.abs(2 * x)), 4),
    ("log", NEAR_1, lambda x: -(2.0**-21), 4),
    ("log", FAR, lambda x: 3, 4),
    ("log2", NEAR_1, lambda x: -(2.0**-22), 4),
    ("sqrt", POSITIVE, lambda x: 3, 0),
    ("rsqrt", POSITIVE, lambda x: 2, 0),
    ("sin", TURN, lambda x: -(2.0**-13), 4),
    ("cos", TURN, lambda x: -(2.0**-13), 4),
]


@pytest.fixture(scope="module")
def worst() -> Floats:
    """Of every entry of STATED three rows, in the order of SPACES."""
    texts = [f"{space}{name}(x{n}[i])" for n, (name, *_) in enumerate(STATED) for space in SPACES]
    return values(texts, *(x for _, x, *_ in STATED), numerics=WORST)


@pytest.mark.parametrize("at", range(len(STATED)), ids=lambda at: f"{STATED[at][0]} {at}")
def test_errors_are_as_large_as_stated(at: int, worst: Floats) -> None:
    """Within half a ulp and the C library's own; of either sign; what is not `precise::` is `fast::`."""
    name, x, fast, precise = STATED[at]
    wide = x.astype(np.float64)
    exact = 1 / np.sqrt(wide) if name == "rsqrt" else getattr(np, name)(wide)
    ulp = np.spacing(np.abs(exact.astype(F32))).astype(np.float64)
    plain, of_fast, of_precise = worst[3 * at : 3 * at + 3]
    assert np.array_equal(plain, of_fast)
    for found, stated in ((of_fast, fast(wide) * np.ones(x.size)), (of_precise, np.full(x.size, precise))):
        bound = np.where(stated < 0, -stated, stated * ulp)
        off = found - exact
        assert (np.abs(off) <= bound + 1.5 * ulp).all()
        # A ulp below a power of two is half of one above, and 0 is exact.
        assert ((np.abs(off) >= bound / 2 - 1.5 * ulp) | (exact == 0)).all()
        if bound.max() > 2 * ulp.max():
            assert 0.4 < (off > 0).mean() < 0.6


def test_results_without_an_error() -> None:
    """Zero, infinity and NaN are what they are, and no exponential is negative."""
    x = np.array([-np.inf, np.inf, np.nan, -200, 200, -103, 0, 1], F32)
    found = values(["exp(x0[i])"], x, numerics=WORST)[0]
    assert found[[0, 1, 3, 4]].tolist() == [0, np.inf, 0, np.inf] and np.isnan(found[2]) and found[5] >= 0


def test_functions_without_a_stated_error_do_not_compile() -> None:
    with pytest.raises(BuildError, match="not modelled"):
        values(["tanh(x0[i])"], PAIRS[0], numerics=WORST)


def test_contraction() -> None:
    """The rounding error of a square, which only a fused product shows."""
    x = np.array([1 + 2.0**-12] * 8, F32)
    expression = ["x0[i] * x0[i] - x1[i]"]
    assert (values(expression, x, x * x) == 0).all()
    assert (values(expression, x, x * x, numerics=Numerics(contract=True)) == 2.0**-24).all()


def test_flushing() -> None:
    """Of arguments and of results; only while the kernel runs."""
    x = np.array([1e-39, 2e-38, 1, -1e-39, 3e-38, 0, 1e-45, 1e30], F32)
    expected = np.stack([x * 4, x * F32(0.25)])
    texts = ["x0[i] * 4.0f", "x0[i] * 0.25f"]
    assert np.array_equal(values(texts, x), expected)
    tiny = np.abs(np.stack([x, expected[1]])) < np.finfo(F32).tiny
    found = values(texts, x, numerics=Numerics(flush=True))
    assert np.array_equal(found, np.where(tiny, 0, expected)) and tiny.sum() == 10
    assert np.float64(1e-310) * np.float64(0.5) > 0
