"""Tensors that have a shape and a dtype and nothing else, in the formats a recipe stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.tensors import ExpertProduct, Linear, Routed
from dsv4_mlx.ops.types import Bank

Recipe = Literal["native", "4bit"]
GROUP = 32  # columns that share a scale in mxfp8 and mxfp4
AFFINE_GROUP = 64
BF16_MATRICES = ("embed", "head")  # stored as they came, by `native`


def blank(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An array that is never evaluated: 284 billion parameters cost nothing."""
    return mx.zeros(shape, dtype)


@dataclass(frozen=True)
class BlankExperts:
    """All experts of a layer, resident. Not a Module: banks are handed to the trace one by one."""

    gate_up: Bank
    down: Bank
    product: ExpertProduct
    on_ids: Callable[[list[mx.array]], None]

    def routed(self, chunks: Sequence[Routed]) -> list[mx.array]:
        self.on_ids([chunk.ids for chunk in chunks])
        return [self.product(chunk, self.gate_up, self.down) for chunk in chunks]


@dataclass
class BlankTensors:
    """TensorSource for a Mac: bfloat16 activations, dtypes as a converted folder of the recipe loads.

    `on_ids` is told what a layer's experts are chosen by: ids of each chunk.
    """

    config: ModelConfig
    recipe: Recipe = "native"
    dtype: mx.Dtype = mx.bfloat16
    taken: dict[str, tuple[int, ...]] = field(default_factory=dict)
    on_ids: Callable[[list[mx.array]], None] = lambda ids: None

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        if name in BF16_MATRICES and self.recipe == "native":
            return Linear(self._blank(name, shape, mx.bfloat16))
        return _affine(shape) if self.recipe == "4bit" else _quantised(shape, 8)

    def float_linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return Linear(self._blank(name, shape, mx.bfloat16))

    def vector(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self._blank(name, shape, mx.float32)

    def norm(self, name: str, size: int) -> mx.array:
        return self._blank(name, (size,), self.dtype)

    def table(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self._blank(name, shape, mx.int32)

    def experts(self, block: str, product: ExpertProduct) -> BlankExperts:
        count, hidden, width = self.config.experts, self.config.hidden_size, self.config.expert_width
        return BlankExperts(
            _bank(count, 2 * width, hidden), _bank(count, hidden, width), product, self.on_ids
        )

    def _blank(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
        self.taken[name] = shape
        return blank(shape, dtype)


def _affine(shape: tuple[int, int]) -> Linear:
    rows, columns = shape
    codes = blank((rows, columns // 8), mx.uint32)
    scales, biases = (blank((rows, columns // AFFINE_GROUP), mx.bfloat16) for _ in range(2))
    return Linear(codes, scales, biases, mode="affine", bits=4, group=AFFINE_GROUP)


def _quantised(shape: tuple[int, int], bits: int) -> Linear:
    rows, columns = shape
    codes = blank((rows, columns * bits // 32), mx.uint32)
    scales = blank((rows, columns // GROUP), mx.uint8)
    return Linear(codes, scales, mode=f"mxfp{bits}", bits=bits, group=GROUP)


def _bank(experts: int, rows: int, columns: int) -> Bank:
    codes = blank((experts, rows, columns // 8), mx.uint32)
    scales = blank((experts, rows, columns // GROUP), mx.uint8)
    return Bank(codes, scales, mode="mxfp4", bits=4, group=GROUP)
