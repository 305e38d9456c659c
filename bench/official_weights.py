"""An official folder's tensors in the formats of recipe `native`, without a converted folder between.

For comparisons on the CPU: float32 activations, mxfp8 dense, mxfp4 experts, and the rest in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.model.tensors import ExpertProduct, Linear, Routed
from dsv4_mlx.operands import Bank

FP8_BLOCK, GROUP = 128, 32


class Experts:
    """The experts of a layer as banks in memory."""

    def __init__(self, gate_up: Bank, down: Bank) -> None:
        self.gate_up, self.down = gate_up, down

    def routed(self, product: ExpertProduct, chunks: Sequence[Routed]) -> list[mx.array]:
        return [product(c.rows, c.x, c.ids, c.weights, self.gate_up, self.down, c.beside) for c in chunks]


class OfficialTensors:
    """TensorSource over an official checkpoint."""

    dtype = mx.float32

    def __init__(self, folder: Path, experts: int) -> None:
        self.experts_per_layer = experts
        self.raw: dict[str, mx.array] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.raw.update(mx.load(str(file)))  # type: ignore[arg-type]

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        weight, scale = self.raw[f"{name}.weight"], self.raw.get(f"{name}.scale")
        if scale is None:
            return Linear(weight.astype(mx.float32))
        rows, columns = shape
        wide = mx.repeat(mx.repeat(scale, FP8_BLOCK, 0)[:rows], FP8_BLOCK // GROUP, 1)[:, : columns // GROUP]
        codes = weight.view(mx.uint32)
        return Linear(codes, mx.contiguous(wide), mode="mxfp8", bits=8, group=GROUP)

    def float_linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return self.linear(name, shape)

    def vector(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self.raw[name].astype(mx.float32)

    def norm(self, name: str, size: int) -> mx.array:
        return self.vector(f"{name}.weight", (size,))

    def table(self, name: str, shape: tuple[int, ...]) -> mx.array:
        return self.raw[name].astype(mx.int32)

    def experts(self, block: str) -> Experts:
        return Experts(self._bank(block, ("w1", "w3")), self._bank(block, ("w2",)))

    def _bank(self, block: str, names: tuple[str, ...]) -> Bank:
        def stacked(part: str) -> list[mx.array]:
            prefix = f"{block}.ffn.experts"
            every = range(self.experts_per_layer)
            return [mx.concatenate([self.raw[f"{prefix}.{e}.{n}.{part}"] for n in names]) for e in every]

        codes = mx.stack([c.view(mx.uint32) for c in stacked("weight")])
        return Bank(codes, mx.stack(stacked("scale")), mode="mxfp4", bits=4, group=GROUP)
