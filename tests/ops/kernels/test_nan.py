"""A NaN in any float that a kernel is given comes out where the reference has it; picks are its picks.

Under Metal's rule for min, max and clamp: precise ones drop a NaN, of fast ones it may come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import metal_proof as proof
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from ops.kernels.proven import Proven
from ops.kernels.short import is_short

from dsv4_mlx.ops.kernels import ALL, index_select
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance, disagreement
from dsv4_mlx.ops.table import REFERENCE

RULES = {"dropped": proof.Numerics(), "kept": proof.Numerics(functions=True)}
TRIES = 100
# Index rows that are picked anyway: all, or the first whatever q and the weights are.
SAME_PICK = (
    "32 rows, all wanted",
    "fewer numbers than wanted, the rest NaN",
    "all equal",
    "zeros of both signs",
)


def spoilt(tree: Any, pick: int) -> Iterator[tuple[str, Any]]:
    """Copies of nested arguments, in each of which one float or one element of an array is NaN."""
    if isinstance(tree, float):
        yield "", np.nan
    elif isinstance(tree, mx.array):
        if tree.size and mx.issubdtype(tree.dtype, mx.inexact):
            flat = tree.reshape(-1)
            # From the start, which no mask hides: what it hides may not be read.
            bad = mx.arange(flat.size) == pick * max(37, flat.size // TRIES) % flat.size
            yield "", mx.where(bad, mx.array(mx.nan, flat.dtype), flat).reshape(tree.shape)
    elif isinstance(tree, dict):
        for name, part in tree.items():
            for inner, made in spoilt(part, pick):
                yield f".{name}{inner}", {**tree, name: made}
    elif isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        for at, (name, part) in enumerate(zip(names, tree, strict=True)):
            for inner, made in spoilt(part, pick):
                parts = (*tree[:at], made, *tree[at + 1 :])
                yield f".{name}{inner}", type(tree)(*parts) if hasattr(tree, "_fields") else parts


def call(case: Case) -> tuple[Any, ...]:
    return case.arguments, dict(case.options)


def reference(op: KernelOp, given: tuple[Any, ...]) -> Any:
    return getattr(REFERENCE, op.name)(*given[0], **given[1])


def telling(op: KernelOp, case: Case, name: str) -> tuple[Any, Any]:
    """Arguments with a NaN in `name` that the reference's result shows, and that result."""
    sound = reference(op, call(case))
    for pick in range(TRIES):
        given = dict(spoilt(call(case), pick))[name]
        expected = reference(op, given)
        if disagreement(expected, sound, case.tolerance) is not None:
            return given, expected
    if case.name in SAME_PICK:
        return given, expected
    raise AssertionError(f"{op.name}, {case.name}: no NaN in {name} shows")


def lost(result: Any) -> list[mx.array]:
    """The arrays of a result with NaN for infinity: MLX's E4M3 codes of a NaN are numbers, and overflow."""
    pairs: Any = [("", result)] if isinstance(result, mx.array) else tree_flatten(result)
    leaves = [leaf for _, leaf in pairs if leaf is not None]
    return [
        mx.where(mx.isfinite(leaf), leaf, mx.array(mx.nan, leaf.dtype))
        if mx.issubdtype(leaf.dtype, mx.floating)
        else leaf
        for leaf in leaves
    ]


def inputs(case: Case) -> list[str]:
    return [name for name, _ in spoilt(call(case), 0)]


def cases(op: KernelOp) -> list[Case]:
    """The op's with rows. Of index rows that a query does not see the pick is the caller's to ignore."""
    found = [case for case in op.cases() if not case.name.startswith("no ")]
    if op is not index_select.OP:
        return found
    seen = index_select._arguments(1, 3, 8, 32, 129, 20, mx.float32, (40, 80, 129))
    plain = [case for case in found if case.name != "129 rows, some hidden"]
    return [*plain, Case("129 rows, many seen", seen, tolerance=Tolerance(any_order=True))]


def every() -> Iterator[Any]:
    for op in ALL:
        for case in cases(op):
            for name in inputs(case):
                marks = () if is_short(op.name, case.name) else pytest.mark.long
                yield pytest.param(op, case, name, id=f"{op.name}: {case.name}: {name}", marks=marks)


@pytest.mark.parametrize(("op", "case", "name"), list(every()))
def test_a_nan_comes_out(op: KernelOp, case: Case, name: str) -> None:
    (arguments, options), expected = telling(op, case, name)
    for rule, numerics in RULES.items():
        found = op.call(Proven(check=False, numerics=numerics), *arguments, **options)
        assert disagreement(lost(found), lost(expected), case.tolerance) is None, rule
