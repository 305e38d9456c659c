"""The matrix products of a step, alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx

from bench.count.trace import Array, Graph, Primitive

# Decoding a matrix before a product is part of it.
PRODUCTS = frozenset(("AddMM", "Dequantize", "GatherMM", "GatherQMM", "Matmul", "QuantizedMatmul"))
TINY = 4096  # elements of both sides of a product that is no matrix product in spirit: Sinkhorn's sums


class Traced(Protocol):
    def graph(self, before: int, rows: int) -> Graph: ...


def products(engine: Traced, before: int, rows: int) -> Callable[[], None]:
    """A function that computes every matrix product of the step, on values of the same shape and layout."""
    graph = engine.graph(before, rows)
    transposed = {
        p.outputs[0].key
        for p in graph.primitives
        if p.name == "Transpose" and _swaps_last(tuple(p.arguments[0]))
    }
    made: dict[str, mx.array] = {}

    def operand(array: Array) -> mx.array:
        """Every array of the graph is one here too: weights come from as much memory as in the step."""
        if array.key not in made:
            made[array.key] = _values(array.shape, array.dtype, array.key in transposed)
            mx.eval(made[array.key])
        return made[array.key]

    calls = []
    for primitive in graph.primitives:
        if primitive.name in PRODUCTS and not _tiny(primitive):
            indices = 2 if primitive.name.startswith("Gather") else 0
            given = [operand(a) for a in primitive.inputs[: len(primitive.inputs) - indices]]
            calls.append((primitive, given, _experts(primitive) if indices else []))
    mx.eval([indices for _, _, indices in calls])

    def run() -> None:
        mx.eval([_product(*call) for call in calls])

    return run


def _swaps_last(order: tuple[int, ...]) -> bool:
    return order[-2:] == (len(order) - 1, len(order) - 2)


def _tiny(primitive: Primitive) -> bool:
    return primitive.name in ("AddMM", "Matmul") and sum(a.nbytes for a in primitive.inputs) < 4 * TINY


def _values(shape: tuple[int, ...], dtype: mx.Dtype, transposed: bool) -> mx.array:
    if transposed:
        return _values((*shape[:-2], shape[-1], shape[-2]), dtype, False).swapaxes(-1, -2)
    if dtype == mx.uint8:
        return mx.full(shape, 127, dtype)  # scales of one
    if dtype == mx.uint32:
        return mx.full(shape, 0x22222222, dtype)  # codes
    return mx.random.normal(shape).astype(dtype)


def _experts(primitive: Primitive) -> list[mx.array]:
    """Row numbers and random experts for a gathered product."""
    left, right = primitive.inputs[-2:]
    rows = math.prod(primitive.inputs[0].shape[:-2])
    experts = primitive.inputs[1].shape[0]
    numbers = mx.arange(math.prod(left.shape)) % rows
    return [
        numbers.reshape(left.shape).astype(mx.uint32),
        mx.random.randint(0, experts, right.shape).astype(mx.uint32),
    ]


def _product(primitive: Primitive, given: list[mx.array], indices: list[mx.array]) -> mx.array:
    if primitive.name == "Matmul":
        return given[0] @ given[1]
    if primitive.name == "Dequantize":
        return mx.dequantize(*given, group_size=32, bits=8, mode="mxfp8", dtype=mx.float32)
    if primitive.name == "AddMM":
        return mx.addmm(given[2], given[0], given[1])
    if primitive.name == "GatherMM":
        return mx.gather_mm(given[0], given[1], *indices)
    x, codes = primitive.inputs[:2]
    bits = 32 * codes.shape[-1] // x.shape[-1]  # mxfp8 codes are four to a word, mxfp4 codes eight
    how: dict[str, Any] = {"transpose": True, "group_size": 32, "bits": bits, "mode": f"mxfp{bits}"}
    if primitive.name == "QuantizedMatmul":
        return mx.quantized_matmul(given[0], given[1], given[2], **how)
    return mx.gather_qmm(given[0], given[1], given[2], None, indices[0], indices[1], **how)
