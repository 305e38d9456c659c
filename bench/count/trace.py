"""The primitives of a computation, with every shape and dtype, without computing anything.

`mx.export_function` with a callback walks the graph of a function whose inputs are placeholders: no input
is read, so weights may be lazy arrays that would never fit in memory. The graph is the one that the current
backend builds; `as_on_metal` makes it the one that Metal builds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import mlx.core as mx

TAG = "as_on_metal_"  # kernels that stand for a fused primitive of MLX


@dataclass(frozen=True)
class Array:
    """An edge of the graph."""

    key: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class Primitive:
    """A node: `name` as MLX names it, or the fused primitive that a tag stands for."""

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """A traced function. `inputs` are in the order of the arguments, `constants` were made on the host."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    constants: frozenset[str]
    primitives: tuple[Primitive, ...]


def trace(function: Callable[..., Sequence[mx.array]], arguments: Sequence[mx.array]) -> Graph:
    """The graph of `function(*arguments)`; arguments are never evaluated."""
    events: list[dict[str, Any]] = []
    with mock.patch.multiple(
        mx, contiguous=_contiguous, to_fp8=_to_fp8, from_fp8=_from_fp8, dequantize=_dequantize
    ):
        mx.export_function(events.append, function, *arguments)
    inputs: tuple[Array, ...] = ()
    outputs: tuple[Array, ...] = ()
    constants: set[str] = set()
    primitives = []
    for event in events:
        match event["type"]:
            case "inputs":
                inputs = _arrays(event["inputs"])
            case "outputs":
                outputs = _arrays(event["outputs"])
            case "constants":
                constants |= {key for key, _ in event["constants"]}
            case "primitive":
                primitives.append(_primitive(event))
    return Graph(inputs, outputs, frozenset(constants), tuple(primitives))


def _arrays(entries: Sequence[tuple[str, tuple[int, ...], mx.Dtype]]) -> tuple[Array, ...]:
    return tuple(Array(key, tuple(shape), dtype) for key, shape, dtype in entries)


def _primitive(event: dict[str, Any]) -> Primitive:
    name = event["name"]
    if name == "CustomKernel":
        name = str(event["arguments"][0]).removeprefix("custom_kernel_")
        if name.startswith(TAG):
            name = name.removeprefix(TAG).split("_")[0]
    return Primitive(name, _arrays(event["inputs"]), _arrays(event["outputs"]), tuple(event["arguments"]))


def tag(
    name: str, inputs: Sequence[mx.array], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[mx.Dtype]
) -> list[mx.array]:
    """The outputs of one primitive called `name`. It can be traced anywhere and run nowhere."""
    kernel: Any = mx.fast.metal_kernel(
        name=TAG + name,
        input_names=[f"i{n}" for n in range(len(inputs))],
        output_names=[f"o{n}" for n in range(len(shapes))],
        source=";",
    )
    outputs: list[mx.array] = kernel(
        inputs=list(inputs), grid=(1, 1, 1), threadgroup=(1, 1, 1),
        output_shapes=list(shapes), output_dtypes=list(dtypes),
    )  # fmt: skip
    return outputs


def _tag(name: str, inputs: list[mx.array], shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return tag(name, inputs, [shape], [dtype])[0]


# Primitives that MLX 0.32.4 can't export.
def _contiguous(x: mx.array, allow_col_major: bool = False) -> mx.array:
    return _tag("Contiguous", [x], x.shape, x.dtype)


def _to_fp8(x: mx.array) -> mx.array:
    return _tag("ToFP8", [x], x.shape, mx.uint8)


def _from_fp8(x: mx.array, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return _tag("FromFP8", [x], x.shape, dtype)


def _dequantize(
    codes: mx.array, scales: mx.array, biases: mx.array | None = None, *, dtype: mx.Dtype, **how: Any
) -> mx.array:
    """One kernel on Metal, whatever the mode; a chain on the CPU, of which mxfp8's can't be exported."""
    inputs = [codes, scales] if biases is None else [codes, scales, biases]
    bits = how.get("bits") or {"mxfp8": 8, "mxfp4": 4}[how["mode"]]
    return _tag("Dequantize", inputs, (*codes.shape[:-1], codes.shape[-1] * 32 // bits), dtype)


def _rms_norm(x: mx.array, weight: mx.array | None, eps: float, **_: Any) -> mx.array:
    dtype = x.dtype if weight is None else mx.result_type(x, weight)
    inputs = [x] if weight is None else [x, weight]
    return _tag("RMSNorm", [a.astype(dtype) for a in inputs], x.shape, dtype)


def _rope(
    x: mx.array, dims: int, *, offset: int | mx.array = 0, freqs: mx.array | None = None, **_: Any
) -> mx.array:
    inputs = [x, mx.array(offset)]
    return _tag("RoPE", inputs if freqs is None else [*inputs, freqs], x.shape, x.dtype)


@contextmanager
def as_on_metal() -> Iterator[None]:
    """Within, `mx.fast` operations that Metal runs as one kernel and the CPU decomposes are one primitive.

    `mx.fast.scaled_dot_product_attention` is left decomposed: at head dimension 512 with 64 query heads to
    one key head Metal has no fused kernel either.
    """
    with mock.patch.multiple(mx.fast, rms_norm=_rms_norm, rope=_rope):
        yield
