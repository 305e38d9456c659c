"""Plain float tensors under official names as the source of a model: for training and for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.errors import InputError
from dsv4_mlx.model.tensors import ExpertProduct, Linear, Routed
from dsv4_mlx.ops.types import Bank


class FloatExperts(Module):
    """Experts as plain floats, gate_up [E, 2 I, D] and down [E, D, I]: for training and small tests."""

    def __init__(self, gate_up: mx.array, down: mx.array, product: ExpertProduct) -> None:
        super().__init__()
        self.gate_up, self.down, self._product = gate_up, down, product

    def routed(self, chunks: Sequence[Routed]) -> list[mx.array]:
        gate_up, down = Bank(self.gate_up), Bank(self.down)
        return [self._product(chunk, gate_up, down) for chunk in chunks]


class FloatTensors:
    """TensorSource over arrays by official name, `.weight` included. Everything computes in float32."""

    def __init__(self, tensors: Mapping[str, mx.array]) -> None:
        self._left = dict(tensors)

    @property
    def dtype(self) -> mx.Dtype:
        return mx.float32

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return Linear(self._take(f"{name}.weight", shape).astype(mx.float32))

    def float_linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return self.linear(name, shape)

    def vector(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self._take(name, shape).astype(mx.float32)

    def norm(self, name: str, size: int) -> mx.array:
        return self.vector(f"{name}.weight", (size,))

    def table(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self._take(name, shape).astype(mx.int32)

    def experts(self, block: str, product: ExpertProduct) -> FloatExperts:
        prefix = f"{block}.ffn.experts."
        count = 1 + max((int(n.split(".")[-3]) for n in self._left if n.startswith(prefix)), default=-1)
        gate, up, down = (
            mx.stack([self._take(f"{prefix}{e}.{w}.weight", None) for e in range(count)]).astype(mx.float32)
            for w in ("w1", "w3", "w2")
        )
        return FloatExperts(mx.concatenate([gate, up], axis=1), down, product)

    def finish(self) -> None:
        """Every tensor must have been taken. Raises InputError."""
        if self._left:
            raise InputError(
                f"{len(self._left)} tensors belong to no part of the model: {sorted(self._left)[:8]}"
            )

    def _take(self, name: str, shape: tuple[int, ...] | None) -> mx.array:
        array = self._left.pop(name, None)
        if array is None:
            raise InputError(f"there is no tensor {name}")
        if shape is not None and array.shape != shape:
            raise InputError(f"{name} has shape {list(array.shape)}, expected {list(shape)}")
        return array
