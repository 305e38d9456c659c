"""What a model is built from: tensors by official name, in whatever format they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from dsv4_mlx.ops.types import Bank


class Linear(Module):
    """`y = x @ weight^T`, weight [out, in]: plain floats, or MLX codes with scales (and affine biases).

    A weight of three dimensions [G, out, in] is one matrix per group: x is [..., G, T, in].
    """

    def __init__(
        self, weight: mx.array, scales: mx.array | None = None, biases: mx.array | None = None,
        *, mode: str = "", bits: int = 0, group: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = weight
        if scales is not None:
            self.scales = scales
        if biases is not None:
            self.biases = biases
        self.mode = mode
        self.bits = bits
        self.group = group

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., in] -> [..., out]."""
        if not self.mode:
            return x @ self.weight.swapaxes(-1, -2)
        if self.mode == "mxfp8" and x.dtype == mx.float32 and x.shape[-2] > 1:
            return x @ self._decoded().swapaxes(-1, -2)
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.get("biases"), transpose=True,
            group_size=self.group, bits=self.bits, mode=self.mode,
        )  # fmt: skip

    def _decoded(self) -> mx.array:
        """The matrix [out, in] in float32. Float32 activations are the CPU's, whose product with mxfp8 codes
        decodes them again for each row: decoding once is faster from the second row on (bench/LOG.md).
        """
        return mx.dequantize(
            self.weight, self.scales, group_size=self.group, bits=self.bits, mode=self.mode, dtype=mx.float32
        )

    def parts(self) -> dict[str, mx.array]:
        """weight [out, in or packed] and, where the format has them, scales and biases [out, in / group]."""
        return {name: self[name] for name in ("weight", "scales", "biases") if name in self}

    def like(self, **parts: mx.array) -> Linear:
        """A Linear of the same format with other arrays: [out, in], packed as this one's."""
        return Linear(**parts, mode=self.mode, bits=self.bits, group=self.group)

    def grouped(self, groups: int) -> Linear:
        """[G * out, in] -> [G, out, in]."""
        return self.like(**{name: a.reshape(groups, -1, a.shape[-1]) for name, a in self.parts().items()})

    def bank(self) -> Bank:
        """The weight [out, in] as ops take it."""
        return Bank(self.weight, self.get("scales"), self.get("biases"), self.mode, self.bits, self.group)

    @staticmethod
    def joined(parts: Sequence[Linear]) -> Linear:
        """Matrices that share their input, as one product: outputs side by side. All of one format."""
        first = parts[0]
        if any((p.mode, p.bits, p.group) != (first.mode, first.bits, first.group) for p in parts):
            raise ValueError("matrices that are multiplied together must have one format")
        arrays = {name: mx.concatenate([p[name] for p in parts], axis=0) for name in first.parts()}
        return first.like(**arrays)


class Embedding(Module):
    """Rows of a [V, D] table, which may be quantised."""

    def __init__(self, table: Linear, dtype: mx.Dtype) -> None:
        super().__init__()
        self.table = table
        self.dtype = dtype

    def __call__(self, tokens: mx.array) -> mx.array:
        """tokens [B, T] -> [B, T, D]."""
        table = self.table
        rows = {name: a[tokens] for name, a in table.parts().items()}
        if not table.mode:
            return rows["weight"].astype(self.dtype)
        return mx.dequantize(
            rows["weight"], rows["scales"], rows.get("biases"),
            group_size=table.group, bits=table.bits, mode=table.mode, dtype=self.dtype,
        )  # fmt: skip


class Routed(NamedTuple):
    """A chunk on its way through the experts: x [B, T, D], their ids and weights [B, T, A].

    `shared` float32 [B, T, D] is what the experts' outputs are added to: the shared expert's; None: nothing.
    `rows`: B T of the whole chunk, of which this may be a part: it decides, with the recipe, how experts are
    multiplied.
    """

    x: mx.array
    ids: mx.array
    weights: mx.array
    shared: mx.array | None
    rows: int


# a chunk whose ids are indices of matrices in the banks, gate|up bank, down bank -> float32 [B, T, D]
ExpertProduct = Callable[[Routed, Bank, Bank], mx.array]


class ExpertSource(Protocol):
    """Where the routed experts of a layer live: in memory or paged, which is not the model's matter."""

    def routed(self, chunks: Sequence[Routed]) -> list[mx.array]:
        """For each chunk the sum of its experts' outputs and `shared`, float32 [B, T, D].

        `shared` needs no routed expert: it may be computed while they come.
        """


class TensorSource(Protocol):
    """Tensors by official name without `.weight`; each is taken once. Missing or misshapen: InputError."""

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of activations: float32 on the CPU, bfloat16 on Metal."""

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        """The matrix `name`.weight [out, in], ready to multiply activations."""

    def float_linear(self, name: str, shape: tuple[int, int]) -> Linear:
        """A matrix whose product must be float32 whatever the activations are: plain floats, as stored."""

    def vector(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """The tensor `name`, as float32, [shape]."""

    def norm(self, name: str, size: int) -> mx.array:
        """The weight [size] of a norm over activations, in their dtype, lest it widen the result."""

    def table(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """An integer tensor, as int32 [shape]."""

    def experts(self, block: str, product: ExpertProduct) -> ExpertSource:
        """The routed experts of a block, "layers.3" or "mtp.0", to be multiplied by `product`."""
