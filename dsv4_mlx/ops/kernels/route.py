"""Kernels of `route` and `route_hashed`: the product with the gate, then everything else in one launch."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels import project as products
from dsv4_mlx.ops.kernels.cases import FLOATS, normal
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, run
from dsv4_mlx.ops.kernels.op import Case, KernelOp

MOST_EXPERTS = 1024
IDS = (mx.uint32, mx.int32)


def route(
    launcher: Launcher, x: mx.array, gate: mx.array, bias: mx.array, *, count: int, scale: float
) -> tuple[mx.array, mx.array]:
    """As the reference: x [B, T, D] float32 -> (ids uint32, weights float32), each [B, T, A]."""
    shape, experts = (*x.shape[:2], count), gate.shape[0]
    launch = Launch(
        kernel("route", "route", ("logits", "bias", "constants"), ("ids", "weights")),
        (_logits(launcher, x, gate), bias, constants(scale)),
        grid=(32, shape[0] * shape[1], 1),
        threadgroup=(32, 1, 1),
        shapes=(shape, shape),
        dtypes=(mx.uint32, mx.float32),
        template=(("N", experts), ("A", count)),
    )
    ids, weights = run(launcher, launch)
    return ids, weights


def route_hashed(
    launcher: Launcher, x: mx.array, gate: mx.array, ids: mx.array, *, scale: float
) -> tuple[mx.array, mx.array]:
    """As the reference: the experts ids [B, T, A] are given."""
    experts, count = gate.shape[0], ids.shape[-1]
    rows = ids.shape[0] * ids.shape[1]
    launch = Launch(
        kernel("route", "hashed", ("logits", "given", "constants"), ("weights",)),
        (_logits(launcher, x, gate), ids, constants(scale)),
        grid=(32, rows, 1),
        threadgroup=(32, 1, 1),
        shapes=(ids.shape,),
        dtypes=(mx.float32,),
        template=(("N", experts), ("A", count)),
        bytes_read={"logits": rows * count * 4},
    )
    return ids, run(launcher, launch)[0]


def _logits(launcher: Launcher, x: mx.array, gate: mx.array) -> mx.array:
    """x [B, T, D] -> float32 [B, T, E]: few rows by the kernel of `project`, many by a matrix product."""
    if products.refuses(x, gate) is None:
        return products.project(launcher, x, gate)
    return x @ gate.astype(mx.float32).T


def refuses(x: mx.array, gate: mx.array, bias: mx.array, *, count: int, scale: float) -> str | None:
    """As `route`: x [B, T, D]."""
    if bias.dtype != mx.float32:
        return f"the bias is {bias.dtype}, expected float32"
    return _refuses(x, gate, count)


def refuses_hashed(x: mx.array, gate: mx.array, ids: mx.array, *, scale: float) -> str | None:
    """As `route_hashed`: x [B, T, D], ids [B, T, A]."""
    if ids.dtype not in IDS:
        return f"ids are {ids.dtype}, expected one of {IDS}"
    return _refuses(x, gate, ids.shape[-1])


def _refuses(x: mx.array, gate: mx.array, count: int) -> str | None:  # [B, T, D], [E, D]
    experts = gate.shape[0]
    if x.dtype != mx.float32 or gate.dtype not in FLOATS:
        return f"x is {x.dtype}, the gate {gate.dtype}; expected float32 and one of {FLOATS}"
    if not 8 <= experts <= MOST_EXPERTS or not 1 <= count <= min(32, experts):
        return f"{count} of {experts} experts, expected at most 32 of 8 to {MOST_EXPERTS}"
    return None


def cases() -> list[Case]:
    made = [
        ("31 experts", (1, 2), 31, 3, 64, mx.float32, 1.0, 1.0),
        ("32 experts, bfloat16", (1, 2), 32, 6, 64, mx.bfloat16, 1.0, 1.0),
        ("33 experts, all chosen but one", (1, 1), 33, 32, 64, mx.float32, 1.0, 1.0),
        ("256 experts", (2, 3), 256, 6, 128, mx.bfloat16, 1.0, 1.0),
        ("384 experts, more rows than one by one", (1, 17), 384, 6, 64, mx.float32, 1.0, 1.0),
        ("no rows", (1, 0), 32, 6, 64, mx.bfloat16, 1.0, 1.0),
        ("all equal: ties", (1, 1), 256, 6, 64, mx.float32, 0.0, 0.0),
        ("equal but for the bias's levels", (1, 1), 256, 6, 64, mx.float32, 0.0, 1.0),
        ("saturated", (1, 1), 64, 6, 64, mx.float32, 5.0, 1.0),
        ("tiny probabilities", (1, 1), 64, 4, 64, mx.float32, -2.0, 1.0),
    ]
    return [_case(*one) for one in made]


def _case(
    name: str,
    rows: tuple[int, int],
    experts: int,
    count: int,
    width: int,
    dtype: mx.Dtype,
    size: float,
    bias: float,
) -> Case:
    x, gate = _inputs(rows, experts, width, size)
    levels = mx.round(4 * normal((experts,), 5)) * bias  # many equal: a tie goes to the smaller id
    return Case(name, (x, gate.astype(dtype), levels), {"count": count, "scale": 1.5})


def _inputs(rows: tuple[int, int], experts: int, width: int, size: float) -> tuple[mx.array, mx.array]:
    """x [B, T, D], gate [E, D]. Negative `size`: all logits around -40 at size -2."""
    x, gate = normal((*rows, width), 3), normal((experts, width), 4) / 8
    if size < 0:
        return mx.ones((*rows, width)), gate / 8 + 10 * size / width
    return x * size, gate


def cases_hashed() -> list[Case]:
    made = [
        ("31 experts", (1, 2), 31, mx.float32, mx.int32, 1.0),
        ("256 experts, bfloat16", (2, 3), 256, mx.bfloat16, mx.int32, 1.0),
        ("33 experts, many rows", (1, 17), 33, mx.float32, mx.uint32, 1.0),
        ("no rows", (1, 0), 32, mx.bfloat16, mx.int32, 1.0),
        ("saturated", (1, 1), 64, mx.float32, mx.int32, 30.0),
        ("tiny probabilities", (1, 1), 64, mx.float32, mx.int32, -2.0),
    ]
    return [_case_hashed(*one) for one in made]


def _case_hashed(
    name: str, rows: tuple[int, int], experts: int, dtype: mx.Dtype, kind: mx.Dtype, size: float
) -> Case:
    x, gate = _inputs(rows, experts, 64, size)
    ids = mx.argsort(normal((*rows, experts), 6), axis=-1)[..., :6].astype(kind)
    return Case(name, (x, gate.astype(dtype), ids), {"scale": 1.5})


OP = KernelOp("route", route, refuses, cases)
HASHED = KernelOp("route_hashed", route_hashed, refuses_hashed, cases_hashed)
