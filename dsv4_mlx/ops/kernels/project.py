"""Kernel of `project`, for the few rows of a decode step: one launch, the weight read as it is stored."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.cases import FLOATS, normal
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, number, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import Number

# Beyond, a matrix product that uses each weight for many rows at once is better: the reference's.
MOST_ROWS = 16
_INPUTS = ("x", "weight", "bias", "uniforms", "phase")
_THREADS = 64


def project(
    launcher: Launcher, x: mx.array, weight: mx.array, bias: mx.array | None = None, phase: Number = 0
) -> mx.array:
    """As the reference: x float32 [B, T, D], weight [W, D] -> [B, T, W] float32."""
    batch, rows, width = x.shape
    columns = weight.shape[0]
    step = 4 if columns >= 1024 else 1  # few columns: more simdgroups instead
    period = 1 if bias is None else bias.shape[0]
    launch = Launch(
        kernel("project", "project", _INPUTS, ("y",)),
        (x, weight, constants(0.0) if bias is None else bias, uniforms(max(rows, 1), period), number(phase)),
        grid=(32 * -(-columns // step), batch * rows, 1),
        threadgroup=(_THREADS, 1, 1),
        shapes=((batch, rows, columns),),
        dtypes=(mx.float32,),
        template=(
            ("T", weight.dtype), ("N", columns), ("D", width), ("COLUMNS", step), ("BIAS", bias is not None),
        ),
        bytes_read={
            "bias": 0 if bias is None else min(rows, period) * columns * 4,
            **({} if bias is not None else {"uniforms": 0, "phase": 0}),
        },
    )  # fmt: skip
    return run(launcher, launch)[0]


def refuses(x: mx.array, weight: mx.array, bias: mx.array | None = None, phase: Number = 0) -> str | None:
    """As `project`: x [B, T, D]."""
    if x.dtype != mx.float32 or weight.dtype not in FLOATS or (bias is not None and bias.dtype != mx.float32):
        return f"x is {x.dtype}, the weight {weight.dtype}; expected float32 and one of {FLOATS}"
    if x.shape[2] % 4 or x.shape[2] < 8:
        return f"rows have {x.shape[2]} channels, expected a multiple of 4"
    if x.shape[0] * x.shape[1] > MOST_ROWS:
        return f"there are {x.shape[0] * x.shape[1]} rows, expected at most {MOST_ROWS}"
    return None


def cases() -> list[Case]:
    made = [
        ("31 columns, width 124", (1, 1), 31, 124, mx.float32, 0, 1.0),
        ("32 columns, width 128, bfloat16", (1, 1), 32, 128, mx.bfloat16, 0, 1.0),
        ("33 columns, width 132, float16", (1, 3), 33, 132, mx.float16, 0, 1.0),
        ("bias that goes round", (2, 6), 40, 64, mx.bfloat16, 3, 1.0),
        ("one row of a bias", (1, 1), 40, 64, mx.bfloat16, 2, 1.0),
        ("16 rows of width 260", (2, 8), 8, 260, mx.bfloat16, 0, 1.0),
        ("1,027 columns", (1, 1), 1027, 64, mx.bfloat16, 1, 1.0),
        ("no rows", (1, 0), 8, 64, mx.bfloat16, 0, 1.0),
        ("all zero", (1, 1), 8, 64, mx.bfloat16, 0, 0.0),
        ("subnormal", (1, 1), 8, 64, mx.float32, 0, 1e-39),
        ("large", (1, 1), 8, 64, mx.float32, 0, 1e30),
    ]
    return [_case(*one) for one in made]


def _case(
    name: str, rows: tuple[int, int], columns: int, width: int, dtype: mx.Dtype, phase: int, size: float
) -> Case:
    x, weight = normal((*rows, width), 1) * size, normal((columns, width), 2).astype(dtype)
    if not phase:
        return Case(name, (x, weight))
    return Case(name, (x, weight, normal((4, columns), 3), phase), {}, Tolerance())


OP = KernelOp("project", project, refuses, cases)
