"""What a session needs of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.state import ModelState, Snapshot
from dsv4_mlx.model.step import PreparedStep


class LanguageModel(Protocol):
    """What a session needs of a model; as in model.transformer.Transformer."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def dtype(self) -> mx.Dtype: ...

    @property
    def chunks_per_step(self) -> int: ...

    def new_state(self, *, growth: int) -> ModelState: ...

    def streams_of(
        self, chunks: Sequence[mx.array], state: ModelState, check_cancelled: Callable[[], None] = ...
    ) -> tuple[list[mx.array], list[Snapshot]]: ...

    def logits(self, streams: mx.array, *, last: bool) -> mx.array: ...

    def step(self, tokens: mx.array, state: ModelState) -> mx.array: ...

    def prepare(self, tokens: mx.array, state: ModelState) -> PreparedStep | None: ...
