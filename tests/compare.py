"""Comparisons with the oracles, and the only place where tolerances are written.

Differences of logits are measured in units of the standard deviation of the prompt's reference logits, so
that a figure means the same for every model size. Each function returns the figure it measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from oracle.goldens import Prompt

Array = NDArray[Any]

LOGITS = 1e-4  # float32 against transformers float32, largest difference
TOP1_GAP = 2e-4  # the first token must agree where the reference's first two are further apart than this
PARTITION = 5e-5  # one prompt cut in different ways
ORACLE = 3e-5  # the numpy model against transformers: leaves a runtime most of LOGITS
OFFICIAL_MEDIAN = 1e-5  # with simulated quantisation, against the numpy model: median difference
OFFICIAL_TOP1 = 0.99  # and share of positions with the same first token
# With 64 index heads of 128 so many values are rounded that some lie on a rounding edge of any prompt. A
# difference of 1e-7 then becomes one step of Q4, and everything after it differs: whole runs of this case
# agree on tokens only, and its values are compared a layer at a time.
CHAOTIC = {"heads"}
OP = 2e-6  # one float32 op against float64 numpy, in standard deviations of the result


def _as_array(actual: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    array = np.asarray(actual)
    if array.dtype.kind != "f":
        raise AssertionError(f"{what}: dtype is {array.dtype}, expected floating point")
    if array.shape != shape:
        raise AssertionError(f"{what}: shape is {array.shape}, expected {shape}")
    return array.astype(np.float64)


def _largest(
    actual: Array,
    expected: Array,
    unit: float,
    tolerance: float,
    what: str,
    axes: tuple[Array | None, Array | None] = (None, None),
) -> float:
    """Largest |difference| / unit; fails above `tolerance` naming the first and the worst coordinate.

    `axes` translates indices into positions and vocabulary entries where only some were kept.
    """
    if not actual.size:
        raise AssertionError(f"{what}: nothing to compare")
    if not unit > 0:
        raise AssertionError(f"{what}: the unit of the comparison is {unit}: the reference is degenerate")
    difference = np.abs(actual - expected.astype(np.float64)) / unit
    wrong = ~(difference <= tolerance)  # NaN counts as wrong
    if not wrong.any():
        return float(difference.max())

    def describe(index: tuple[int, ...]) -> str:
        names = [*axes, *(None,) * len(index)]
        named = tuple(n if axis is None else int(axis[n]) for n, axis in zip(index, names, strict=False))
        return (
            f"at {named}: actual {actual[index]:.9g}, expected {expected[index]:.9g}, {difference[index]:.3g}"
        )

    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    ranked = np.where(np.isnan(difference), np.inf, difference)
    worst = tuple(int(i) for i in np.unravel_index(int(ranked.argmax()), ranked.shape))
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} values differ by more than {tolerance:g} std "
        f"(1 std = {unit:.6g})\n  first {describe(first)} std\n  worst {describe(worst)} std"
    )


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float, what: str = "logits") -> float:
    """Every value within `tolerance` standard deviations of `expected`."""
    reference = np.asarray(expected, dtype=np.float64)
    unit = float(reference.std()) if reference.size else 0.0
    return _largest(_as_array(actual, reference.shape, what), reference, unit, tolerance, what)


def assert_logits(
    actual: ArrayLike, golden: Prompt, *, start: int = 0, tolerance: float = LOGITS, what: str = ""
) -> float:
    """Logits of positions `start`.. of a golden prompt agree with the oracle.

    `actual` is float [len(tokens) - start, vocabulary]: a prefill gives all rows, a decode the later ones.
    Checks whole rows at the kept positions, the kept columns at every position, and the first token where
    the oracle is decided.
    """
    what = f"{what or 'logits'} of {golden.name}"
    shape = (len(golden.tokens) - start, golden.row_logits.shape[1])
    logits = _as_array(actual, shape, what)
    if not np.isfinite(logits).all():
        position, entry = np.argwhere(~np.isfinite(logits))[0]
        raise AssertionError(
            f"{what}: {logits[position, entry]} at position {position + start}, entry {entry}"
        )
    positions = np.arange(start, len(golden.tokens))
    worst = _largest(
        logits[:, golden.columns],
        golden.column_logits[start:],
        golden.std,
        tolerance,
        f"{what}, kept columns",
        (positions, golden.columns),
    )
    kept = golden.rows >= start
    if kept.any():
        rows = golden.rows[kept]
        pair = logits[rows - start], golden.row_logits[kept]
        worst = max(worst, _largest(*pair, golden.std, tolerance, f"{what}, kept rows", (rows, None)))
    decided = golden.gap[start:] > TOP1_GAP * golden.std
    wrong = decided & (logits.argmax(axis=1) != golden.top1[start:])
    if wrong.any():
        t = int(np.argmax(wrong))
        found, wanted = int(logits[t].argmax()), int(golden.top1[t + start])
        raise AssertionError(
            f"{what}: first token differs at {int(wrong.sum())} of {int(decided.sum())} decided positions; "
            f"first at {t + start}: actual {found}, expected {wanted}, "
            f"the oracle's gap is {golden.gap[t + start] / golden.std:.3g} std"
        )
    return worst


def assert_official(actual: ArrayLike, expected: ArrayLike, what: str = "logits") -> tuple[float, float]:
    """With simulated quantisation: the median difference and the share of equal first tokens.

    Only these two, because one value that falls on the other side of a rounding edge changes everything
    after it. `expected` is float [T, vocabulary] from the numpy model. Returns both figures.
    """
    reference = np.asarray(expected, dtype=np.float64)
    logits = _as_array(actual, reference.shape, what)
    unit = float(reference.std())
    median = float(np.median(np.abs(logits - reference))) / unit
    same = logits.argmax(axis=-1) == reference.argmax(axis=-1)
    share = float(same.mean())
    if not (median <= OFFICIAL_MEDIAN and share >= OFFICIAL_TOP1 and np.isfinite(logits).all()):
        far = ~(np.abs(logits - reference).max(axis=-1) / unit <= LOGITS)
        raise AssertionError(
            f"{what}: median difference {median:.3g} std (allowed {OFFICIAL_MEDIAN:g}), same first token at "
            f"{share:.2%} of positions (at least {OFFICIAL_TOP1:.0%}); first position that is more than "
            f"{LOGITS:g} std away: {int(np.argmax(far)) if far.any() else 'none'}"
        )
    return median, share


def assert_bits(actual: ArrayLike, expected: ArrayLike, what: str = "values") -> None:
    """float32 arrays with equal bits, zeros' signs and NaN payloads included."""
    left, right = np.asarray(actual), np.asarray(expected)
    if left.dtype != np.float32 or right.dtype != np.float32:
        raise AssertionError(f"{what}: dtypes are {left.dtype} and {right.dtype}, expected float32 twice")
    if left.shape != right.shape:
        raise AssertionError(f"{what}: shape is {left.shape}, expected {right.shape}")
    bits = [np.ascontiguousarray(side).view(np.uint32) for side in (left, right)]
    wrong = bits[0] != bits[1]
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} differ in bits; first at {first}: "
            f"actual {float(left[first])!r} (0x{int(bits[0][first]):08x}), "
            f"expected {float(right[first])!r} (0x{int(bits[1][first]):08x})"
        )
