"""An M5 for machines without one: its GPU's float32 products, kernels on the emulator.

What is asked of the CPU's stream keeps its bits. Named by `Metal.launcher` as "ops.selftest.m5:launch".
Importing it changes MLX, in that process, for good.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
from ops.selftest.scripted import sound

from dsv4_mlx.ops.kernels.launch import Launch

_matmul, _addmm, _gather_mm = mx.matmul, mx.addmm, mx.gather_mm
_quantized, _gather_qmm = mx.quantized_matmul, mx.gather_qmm
_stream, _on_cpu = mx.stream, [0]  # how many CPU streams are entered


@contextmanager
def stream(asked: Any) -> Iterator[None]:
    cpu = asked == mx.cpu
    _on_cpu[0] += cpu
    try:
        with _stream(asked):
            yield
    finally:
        _on_cpu[0] -= cpu


def _rounds() -> bool:
    return _switched_on() and not _on_cpu[0]


@cache
def _switched_on() -> bool:
    """Read at the first product and never again, as MLX does: a number, on where there is none."""
    text = os.environ.get("MLX_ENABLE_TF32")
    return text is None or bool(int(text or "0"))


def tf32(x: mx.array) -> mx.array:
    """float32 -> the nearest number of 10 bits behind the point, ties to even."""
    bits = x.view(mx.uint32)
    rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000
    return mx.where(mx.isfinite(x), rounded.view(mx.float32), x)


def _wide(a: mx.array, b: mx.array) -> bool:
    """Whether a @ b is a product of matrices, which is tiled; one of vectors is not."""
    if a.dtype != mx.float32 or b.dtype != mx.float32 or min(a.ndim, b.ndim) < 2 or not _rounds():
        return False
    rows = a.size // a.shape[-1] if b.ndim == 2 else a.shape[-2]  # batches of rows are one matrix
    return rows >= 2 and b.shape[-1] >= 2


def _product(a: mx.array, b: mx.array, **options: Any) -> mx.array:
    return _matmul(tf32(a), tf32(b), **options) if _wide(a, b) else _matmul(a, b, **options)


def _added(c: mx.array, a: mx.array, b: mx.array, *scales: float, **options: Any) -> mx.array:
    if _wide(a, b):
        a, b = tf32(a), tf32(b)
    return _addmm(c, a, b, *scales, **options)


def _gathered(a: mx.array, b: mx.array, *indices: Any, **options: Any) -> mx.array:
    return (
        _gather_mm(tf32(a), tf32(b), *indices, **options)
        if _wide(a, b)
        else _gather_mm(a, b, *indices, **options)
    )


def _of_codes(plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def product(x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        rows = x.shape[-2] if plain is _gather_qmm else x.size // max(x.shape[-1], 1)
        wide = x.dtype == mx.float32 and rows >= 2 and x.size and _rounds()
        return plain(tf32(x) if wide else x, *arguments, **options)

    return product


mx.stream = stream  # type: ignore[assignment]
mx.matmul = _product
mx.addmm = _added
mx.gather_mm = _gathered
mx.quantized_matmul = _of_codes(_quantized)
mx.gather_qmm = _of_codes(_gather_qmm)
mx.array.__matmul__ = _product  # type: ignore[method-assign]


def launch(asked: Launch) -> Sequence[mx.array]:
    return sound(asked)
