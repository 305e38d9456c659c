"""An op that kernels compute: its wrapper, what it refuses, and the cases it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from dsv4_mlx.ops.kernels.launch import Launcher


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be from the reference's, in units of the reference's largest value of each output.

    A result that was rounded to few bits may land on the neighbouring value where the unrounded ones lie on
    either side of an edge: a `share` of values at most may differ by more than `relative`, none by more than
    `step` times itself (or its neighbour). Integers must be equal.
    """

    relative: float = 1e-5
    share: float = 0.0
    step: float = 0.0
    any_order: bool = False  # of the integers along the last axis


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of a call, and how near the reference its results must be."""

    name: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Tolerance = Tolerance()


@dataclass(frozen=True)
class KernelOp:
    """An entry of `Ops` computed by kernels.

    `call(launcher, *arguments, **options)` has the reference's arguments after the launcher. `refuses` takes
    the same, without the launcher, and says why the kernel can't do a call, or None. `cases` makes the inputs
    by which tests and the check on a user's machine compare it with the reference.
    """

    name: str
    call: Callable[..., Any]
    refuses: Callable[..., str | None]
    cases: Callable[[], Sequence[Case]]

    def bound(self, launcher: Launcher, otherwise: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """The op run by `launcher`. Calls it refuses go to `otherwise`; without one they are a ValueError."""

        def op(*arguments: Any, **options: Any) -> Any:
            reason = self.refuses(*arguments, **options)
            if reason is None:
                return self.call(launcher, *arguments, **options)
            if otherwise is None:
                raise ValueError(f"kernel {self.name}: {reason}; use the reference for this call")
            return otherwise(*arguments, **options)

        op.__module__, op.__qualname__ = self.call.__module__, self.call.__qualname__  # what it is known by
        return op


def disagreement(found: Any, expected: Any, tolerance: Tolerance) -> str | None:
    """What is wrong with `found`, arrays nested alike as `expected`; None if nothing is."""
    pairs = list(zip(_leaves(found), _leaves(expected), strict=True))
    for index, (left, right) in enumerate(pairs):
        if left.shape != right.shape or left.dtype != right.dtype:
            what = f"{left.dtype} {list(left.shape)}, expected {right.dtype} {list(right.shape)}"
            return f"output {index} is {what}"
        wrong = _wrong(left, right, tolerance)
        if wrong is not None:
            return f"output {index}: {wrong}"
    return None


def _leaves(tree: Any) -> list[mx.array]:  # [...] each
    if isinstance(tree, mx.array):
        return [tree]
    pairs: list[tuple[str, Any]] = tree_flatten(tree)  # type: ignore[assignment]
    return [leaf for _, leaf in pairs if leaf is not None]


def _wrong(found: mx.array, expected: mx.array, tolerance: Tolerance) -> str | None:  # [...] both
    if found.size == 0:
        return None
    if not mx.issubdtype(found.dtype, mx.floating):
        if tolerance.any_order:
            found, expected = mx.sort(found, axis=-1), mx.sort(expected, axis=-1)
        count = _number(mx.sum(found != expected))
        return f"{count:.0f} of {found.size} numbers differ" if count else None
    a, b = found.astype(mx.float32), expected.astype(mx.float32)
    same = (a == b) | (mx.isnan(a) & mx.isnan(b))
    largest = mx.max(mx.where(mx.isfinite(b), mx.abs(b), 0.0))
    difference = mx.where(same, 0.0, mx.abs(a - b))
    far = ~(difference <= tolerance.relative * largest)  # NaN counts as far
    beyond = far & ~(difference <= tolerance.step * mx.maximum(mx.abs(a), mx.abs(b)))
    worst = _number(mx.max(mx.where(mx.isnan(difference), mx.inf, difference)) / largest)
    count = _number(mx.sum(beyond))
    if count:
        return f"{count:.0f} of {found.size} values differ, by up to {worst:.3g} of the largest"
    share = _number(mx.mean(far.astype(mx.float32)))
    if share > tolerance.share:
        return f"{share:.3%} of the values differ, by up to {worst:.3g} of the largest"
    return None


def _number(x: mx.array) -> float:  # []
    return float(np.array(x))
