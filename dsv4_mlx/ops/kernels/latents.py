"""Kernel of `latents`: one launch, two simdgroups per row."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels import row
from dsv4_mlx.ops.kernels.cases import FLOATS, normal, rope_table
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import Rounding

_INPUTS = ("low", "q_norm", "kv_norm", "table", "uniforms", "constants")


def latents(
    launcher: Launcher,
    low: mx.array,
    q_norm: mx.array,
    kv_norm: mx.array,
    table: mx.array,
    *,
    eps: float,
    rounding: Rounding,
) -> tuple[mx.array, mx.array]:
    """As the reference: low [B, T, Q + K] -> ([B, T, Q], [B, T, K])."""
    (batch, rows), rank, width = low.shape[:2], q_norm.shape[0], kv_norm.shape[0]
    launch = Launch(
        kernel("latents", "latents", _INPUTS, ("qr", "kv")),
        (low, q_norm, kv_norm, row.floats(table), uniforms(max(rows, 1)), constants(eps)),
        grid=(2 * row.LANES, batch * rows, 1),
        threadgroup=(2 * row.LANES, 1, 1),
        shapes=((batch, rows, rank), (batch, rows, width)),
        dtypes=(low.dtype, low.dtype),
        template=(("T", low.dtype), ("Q", rank), *row.template(width, table, rounding)),
        bytes_read={"table": rows * width * 4},
    )
    qr, kv = run(launcher, launch)
    return qr, kv


def refuses(
    low: mx.array, q_norm: mx.array, kv_norm: mx.array, table: mx.array, *, eps: float, rounding: Rounding
) -> str | None:
    """As `latents`: low [B, T, Q + K]."""
    if low.dtype not in FLOATS or q_norm.dtype != low.dtype or kv_norm.dtype != mx.float32:
        return f"rows are {low.dtype}, norms {q_norm.dtype} and {kv_norm.dtype}: two alike, then float32"
    if q_norm.shape[0] < 8:
        return f"the latent has {q_norm.shape[0]} channels, expected 8 or more"
    return row.refuses(kv_norm.shape[0], table, rounding)


def cases() -> list[Case]:
    q8 = Rounding("q8", 48, 16)
    made = [
        ("31 rows", (1, 31), 31, 64, mx.float32, Rounding(), 1.0),
        ("two sequences of 16 rows, q8", (2, 16), 32, 64, mx.float32, q8, 1.0),
        ("33 rows", (1, 33), 33, 32, mx.float32, Rounding(), 1.0),
        ("latent of 127", (1, 2), 127, 128, mx.float32, Rounding("q8", 64, 64), 1.0),
        ("latent of 128, bfloat16", (1, 2), 128, 64, mx.bfloat16, q8, 1.0),
        ("latent of 129, float16", (1, 2), 129, 512, mx.float16, Rounding(), 1.0),
        ("no rows", (1, 0), 32, 64, mx.float32, q8, 1.0),
        ("subnormal", (1, 1), 32, 64, mx.float32, Rounding(), 1e-39),
        ("all zero", (1, 1), 32, 64, mx.float32, q8, 0.0),
        ("large", (1, 1), 32, 64, mx.float32, Rounding(), 1e15),
        ("true widths", (1, 1), 1024, 512, mx.bfloat16, Rounding("q8", 448, 64), 1.0),
    ]
    return [_case(*one) for one in made]


def _case(
    name: str,
    rows: tuple[int, int],
    rank: int,
    width: int,
    dtype: mx.Dtype,
    rounding: Rounding,
    size: float,
) -> Case:
    low = (normal((*rows, rank + width), rank) * size).astype(dtype)
    q_norm, kv_norm = (1 + normal((rank,), 2) / 4).astype(dtype), 1 + normal((width,), 3) / 4
    # A 16-bit result: MLX's own norm rounds before and after the weight. E4M3: one step either way.
    relative = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    tolerance = Tolerance(relative) if rounding.kind == "none" else Tolerance(relative, 0.01, 0.13)
    options = {"eps": 1e-6, "rounding": rounding}
    return Case(name, (low, q_norm, kv_norm, rope_table(rows[1], width, width // 4)), options, tolerance)


OP = KernelOp("latents", latents, refuses, cases)
