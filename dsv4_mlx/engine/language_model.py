"""What a session needs of a model, which ops computed it, and what happens when a kernel fails in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.errors import Dsv4Warning, ModelOutputError
from dsv4_mlx.model.state import ModelState, Snapshot
from dsv4_mlx.model.step import PreparedStep
from dsv4_mlx.ops.table import Ops, one_by_one, without_kernels

T = TypeVar("T")
Logits = npt.NDArray[np.float32]


class LanguageModel(Protocol):
    """As model.transformer.Transformer."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def ops(self) -> Ops: ...

    @property
    def dtype(self) -> mx.Dtype: ...

    @property
    def chunks_per_step(self) -> int: ...

    def use_ops(self, ops: Ops) -> None: ...

    def new_state(self, *, growth: int) -> ModelState: ...

    def streams_of(
        self, chunks: Sequence[mx.array], state: ModelState, check_cancelled: Callable[[], None] = ...
    ) -> tuple[list[mx.array], list[Snapshot]]: ...

    def logits(self, streams: mx.array, *, last: bool) -> mx.array: ...

    def step(self, tokens: mx.array, state: ModelState) -> mx.array: ...

    def prepare(self, tokens: mx.array, state: ModelState) -> PreparedStep | None: ...


@dataclass(frozen=True)
class Origin:
    """The ops that computed a session's cache last, None where it is empty; `mixed`: others did before."""

    ops: Ops | None = None
    mixed: bool = False

    def then(self, ops: Ops) -> Origin:
        """After a step with `ops`."""
        return Origin(ops, self.mixed or not self.all_by(ops))

    def all_by(self, ops: Ops) -> bool:
        """Whether the cache is what `ops` alone would have computed."""
        return not self.mixed and (self.ops is None or self.ops is ops)


def without_failing_kernels(model: LanguageModel, error: Exception, again: Callable[[], T]) -> tuple[T, bool]:
    """`again()`, launch by launch, after a step raised `error`. A kernel whose launch raises is replaced by
    its reference, in this model for good, and a warning says so; the second result is whether one was.

    Raises what `again` raises where it is no kernel's fault.
    """
    trusted, failed = model.ops, dict[str, str]()
    model.use_ops(one_by_one(trusted, failed))
    try:
        result = again()
    finally:
        model.use_ops(without_kernels(trusted, failed) if failed else trusted)
    if failed:
        what = "; ".join(f"{name}: {said}" for name, said in failed.items())
        message = f"Metal kernels failed in an answer and are replaced by their slower references ({what})"
    else:
        message = f"the device failed once in an answer ({str(error).strip()[:200]}); no kernel is to blame"
    warnings.warn(f"{message}; the token was computed again", Dsv4Warning, stacklevel=1)
    return result, bool(failed)


def check_logits(rows: Logits, position: int) -> None:
    """float32 [.., V], the last of them after `position`. Raises as check_magnitudes."""
    check_magnitudes(np.abs(rows).max(axis=-1), position)


def check_magnitudes(largest: Logits | np.float32, position: int) -> None:
    """The largest magnitude of each row of logits: Metal out of memory is silent and shows as NaN, infinity
    or zeros. Raises ModelOutputError."""
    if not np.all((largest > 0) & (largest < np.inf)):
        raise ModelOutputError(
            f"the logits after token {position} are not numbers or all zero: the device failed",
            next="use a smaller --context, or close other programs; if it happens again, report it",
        )
