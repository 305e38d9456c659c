"""Kernel of `query_heads`: one launch, a simdgroup per head and row."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels import row
from dsv4_mlx.ops.kernels.cases import FLOATS, normal, rope_table
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import Rounding

_HEADS_A_GROUP = 4


def query_heads(
    launcher: Launcher, q: mx.array, table: mx.array, *, heads: int, eps: float | None, rounding: Rounding
) -> mx.array:
    """As the reference: q [B, T, H * K] -> [B, T, H, K] float32."""
    batch, rows, width = *q.shape[:2], q.shape[2] // heads
    launch = Launch(
        kernel("query_heads", "query_heads", ("q", "table", "uniforms", "constants"), ("y",)),
        (q, row.floats(table), uniforms(max(rows, 1)), constants(eps or 0.0)),
        grid=(row.LANES, heads, batch * rows),
        threadgroup=(row.LANES, _HEADS_A_GROUP, 1),
        shapes=((batch, rows, heads, width),),
        dtypes=(mx.float32,),
        template=(
            ("T", q.dtype),
            ("H", heads),
            ("NORM", eps is not None),
            *row.template(width, table, rounding),
        ),
        bytes_read={"table": rows * width * 4, "constants": 0 if eps is None else 4},
    )
    return run(launcher, launch)[0]


def refuses(q: mx.array, table: mx.array, *, heads: int, eps: float | None, rounding: Rounding) -> str | None:
    """As `query_heads`: q [B, T, H * K]."""
    if q.dtype not in FLOATS:
        return f"queries are {q.dtype}, expected one of {FLOATS}"
    return row.refuses(q.shape[2] // heads, table, rounding)


def cases() -> list[Case]:
    q8, q4 = Rounding("q8", 96, 32), Rounding("q4", 64, 32)
    made = [
        ("31 heads of 64, index queries, q4", (1, 2, 31, 64), mx.float32, None, q4, 1.0),
        ("32 heads of 32", (1, 1, 32, 32), mx.float32, 1e-6, Rounding(), 1.0),
        ("33 heads of 96", (1, 2, 33, 96), mx.float32, 1e-6, Rounding(), 1.0),
        ("two sequences, heads of 128, q8", (2, 3, 5, 128), mx.bfloat16, 1e-6, q8, 1.0),
        ("heads of 512 in float16", (1, 3, 2, 512), mx.float16, 1e-6, Rounding(), 1.0),
        ("no rows", (1, 0, 4, 64), mx.float32, 1e-6, Rounding(), 1.0),
        ("subnormal", (1, 1, 4, 64), mx.float32, 1e-6, Rounding(), 1e-39),
        ("all zero, q4", (1, 1, 4, 64), mx.float32, None, q4, 0.0),
        ("large", (1, 1, 4, 64), mx.float32, 1e-6, Rounding(), 1e15),
        ("large, q4", (1, 1, 4, 64), mx.float32, None, q4, 1e30),
    ]
    return [_case(*one) for one in made]


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: mx.Dtype,
    eps: float | None,
    rounding: Rounding,
    size: float,
) -> Case:
    batch, rows, heads, width = shape
    q = (normal((batch, rows, heads * width), 1) * size).astype(dtype)
    # With rounding, a value on an edge may go either way: by one step of the format.
    steps = {"none": Tolerance(), "q8": Tolerance(1e-5, 0.01, 0.13), "q4": Tolerance(1e-5, 0.01, 0.5)}
    options = {"heads": heads, "eps": eps, "rounding": rounding}
    return Case(name, (q, rope_table(rows, width + 32, 8)), options, steps[rounding.kind])


OP = KernelOp("query_heads", query_heads, refuses, cases)
