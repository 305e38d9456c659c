"""Kernels written to prove the machine on, each with inputs and what numpy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metal_proof.arrays import Array, BFloat16, Dtype, from_storage
from metal_proof.machine import Kernel, Result, run
from metal_proof.signature import Template

_FOLDER = Path(__file__).resolve().parent / "kernels"
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A launch and its right answer. `tolerance` is relative to the largest value expected."""

    kernel: Kernel
    inputs: Sequence[Array]
    expected: npt.NDArray[Any]
    grid: Sequence[int]
    threadgroup: Sequence[int]
    output_dtype: str
    template: Template = ()
    init_value: float | None = None
    tolerance: float = 0.0

    def run(self, **options: Any) -> Result:
        return run(
            self.kernel,
            self.inputs,
            grid=self.grid,
            threadgroup=self.threadgroup,
            output_shapes=[self.expected.shape],
            output_dtypes=[self.output_dtype],
            template=self.template,
            init_value=self.init_value,
            **options,
        )

    def error(self, result: Result) -> float:
        """The largest difference, relative to the largest value expected; NaN if the result has one."""
        scale = max(1e-30, float(np.abs(self.expected).max()))
        return float(np.abs(result.values().astype(np.float64) - self.expected).max()) / scale

    def right(self, result: Result) -> bool:
        return self.error(result) <= self.tolerance

    def with_text(self, source: str, header: str) -> Case:
        return replace(self, kernel=replace(self.kernel, source=source, header=header))


def _kernel(name: str, inputs: Sequence[str], output: str, atomic: bool = False) -> Kernel:
    source = (_FOLDER / f"{name}.metal").read_text()
    header = (_FOLDER / f"{name}_header.metal").read_text()
    return Kernel(name, source, header, inputs, [output], atomic)


def _as_dtype(values: Float64, dtype: str) -> tuple[Array, Float64]:
    """The array a kernel gets, and the values it then really holds."""
    if dtype == "bfloat16":
        narrow = BFloat16.from_float32(values)
        return narrow, narrow.to_float32().astype(np.float64)
    cast = values.astype(dtype)
    return from_storage(cast, dtype), cast.astype(np.float64)


# Half the distance between neighbouring values, twice over for the sums before the last rounding.
_TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def row_sum(dtype: str = "float32", rows: int = 3, columns: int = 301) -> Case:
    x, values = _as_dtype(np.random.default_rng(1).normal(1.0, 1.0, (rows, columns)), dtype)
    kernel = _kernel("row_sum", ["x"], "y")
    return Case(
        kernel,
        [x],
        values.sum(axis=1),
        (rows * 128, 1, 1),
        (128, 1, 1),
        dtype,
        [("T", Dtype(dtype))],
        tolerance=_TOLERANCE[dtype],
    )


def softmax(dtype: str = "float32", rows: int = 3, columns: int = 211) -> Case:
    x, values = _as_dtype(np.random.default_rng(2).normal(0.0, 3.0, (rows, columns)), dtype)
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return Case(
        _kernel("softmax", ["x"], "y"),
        [x],
        weights / weights.sum(axis=1, keepdims=True),
        (rows * 96, 1, 1),
        (96, 1, 1),
        dtype,
        [("T", Dtype(dtype))],
        tolerance=_TOLERANCE[dtype],
    )


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4_matvec(dtype: str = "float32", rows: int = 13, columns: int = 320, chunk: int = 256) -> Case:
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (rows, columns // 8, 8), dtype=np.uint32)
    words = (codes << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    scales = random.integers(120, 134, (rows, columns // 32), dtype=np.uint8)
    weights = _E2M1[codes.reshape(rows, columns)] * np.repeat(2.0 ** (scales.astype(float) - 127), 32, axis=1)
    x, values = _as_dtype(random.normal(0.0, 1.0, columns), dtype)
    groups = -(-rows // 4)
    return Case(
        _kernel("mxfp4_matvec", ["w", "scales", "x"], "y"),
        [words, scales, x],
        weights @ values,
        (groups * 128, 1, 1),
        (128, 1, 1),
        dtype,
        [("T", Dtype(dtype)), ("CHUNK", chunk)],
        tolerance=_TOLERANCE[dtype],
    )


def tiled_product(dtype: str = "float32", rows: int = 21, inner: int = 35, columns: int = 18) -> Case:
    random = np.random.default_rng(4)
    a, left = _as_dtype(random.normal(0.0, 1.0, (rows, inner)), dtype)
    b, right = _as_dtype(random.normal(0.0, 1.0, (inner, columns)), dtype)
    grid = (-(-columns // 16) * 128, -(-rows // 16), 1)
    return Case(
        _kernel("tiled_product", ["a", "b"], "c"),
        [a, b],
        left @ right,
        grid,
        (128, 1, 1),
        dtype,
        [("T", Dtype(dtype))],
        tolerance=_TOLERANCE[dtype],
    )


def histogram(dtype: str = "uint32", count: int = 1500) -> Case:
    x = np.random.default_rng(5).integers(0, 256, count).astype(np.uint8)
    return Case(
        _kernel("histogram", ["x"], "counts", atomic=True),
        [x],
        np.bincount(x, minlength=256),
        (256, 1, 1),
        (128, 1, 1),
        dtype,
        init_value=0,
    )


CASES: dict[str, Callable[..., Case]] = {
    "row_sum": row_sum,
    "softmax": softmax,
    "mxfp4_matvec": mxfp4_matvec,
    "tiled_product": tiled_product,
    "histogram": histogram,
}
