"""Kernel of `compress`: one launch, a threadgroup per row that comes out."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels import row
from dsv4_mlx.ops.kernels.cases import FLOATS, normal, rope_table
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, number, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import Number, Rounding

_INPUTS = ("source", "offset", "weight", "table", "uniforms", "constants")


def compress(
    launcher: Launcher,
    source: mx.array,
    offset: Number,
    weight: mx.array,
    table: mx.array,
    *,
    ratio: int,
    at: int,
    overlap: bool,
    first: bool,
    eps: float,
    rounding: Rounding,
    dtype: mx.Dtype,
) -> mx.array:
    """As the reference: whole groups of a ring [B, S, W] -> [B, G', K]."""
    (batch, places, columns), width, rows = source.shape, weight.shape[0], table.shape[0]
    threads = row.LANES * -(-width // row.LANES)
    pooled = rows + (rows - first if overlap else 0)  # groups read, K values and K gates of each token
    launch = Launch(
        kernel("compress", "compress", _INPUTS, ("y",)),
        (
            source,
            number(offset),
            weight,
            row.floats(table),
            uniforms(places, rows, int(overlap and not first)),
            constants(eps),
        ),
        grid=(threads * batch * rows, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=((batch, rows, width),),
        dtypes=(dtype,),
        template=(
            ("T", dtype), ("WIDTH", columns), ("AT", at), ("P", ratio), ("OVERLAP", overlap),
            *row.template(width, table, rounding),
        ),
        bytes_read={"source": batch * pooled * ratio * 2 * width * 4, "table": rows * width * 4},
    )  # fmt: skip
    return run(launcher, launch)[0]


def refuses(
    source: mx.array,
    offset: Number,
    weight: mx.array,
    table: mx.array,
    *,
    ratio: int,
    at: int,
    overlap: bool,
    first: bool,
    eps: float,
    rounding: Rounding,
    dtype: mx.Dtype,
) -> str | None:
    """As `compress`: source [B, S, W]."""
    if source.dtype != mx.float32 or weight.dtype != mx.float32 or dtype not in FLOATS:
        return f"tokens are {source.dtype}, the weight {weight.dtype}, rows {dtype}; the first two float32"
    if table.shape[0] < 1:
        return "there is no group, expected at least one"
    return row.refuses(weight.shape[0], table, rounding)


def cases() -> list[Case]:
    q8, q4 = Rounding("q8", 48, 16), Rounding("q4", 32, 32)
    csa, hca = (4, True), (128, False)  # ratio, overlap
    made = [
        ("csa, one row across the ring's end", (1, 16, 12, 1), csa, 64, False, Rounding(), mx.float32),
        ("csa, first row, q8", (1, 16, 0, 1), csa, 64, True, q8, mx.float32),
        ("csa, index rows of a chunk, q4", (1, 36, 0, 8), csa, 32, False, q4, mx.bfloat16),
        ("csa, two sequences", (2, 32, 0, 8), csa, 32, True, Rounding(), mx.float32),
        ("csa, true widths", (1, 16, 8, 1), csa, 512, False, Rounding("q8", 448, 64), mx.bfloat16),
        ("hca, one row across the ring's end", (1, 136, 16, 1), hca, 64, False, q8, mx.bfloat16),
        ("hca, 33 rows", (1, 33 * 2, 0, 33), (2, False), 32, True, Rounding(), mx.float16),
    ]
    plain = [_case(*one) for one in made]
    far = _case("hca, gates far apart", (1, 136, 0, 1), hca, 32, True, Rounding(), mx.float32, gates=300.0)
    return [*plain, far]


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    kind: tuple[int, bool],
    width: int,
    first: bool,
    rounding: Rounding,
    dtype: mx.Dtype,
    gates: float = 3.0,
) -> Case:
    batch, places, offset, rows = shape
    ratio, overlap = kind
    spread = width * (1 + overlap)
    parts = [normal((batch, places, n), seed) for seed, n in enumerate((6, spread, spread, 5))]
    source = mx.concatenate([parts[0], parts[1], gates * parts[2], parts[3]], axis=-1)
    table = rope_table(rows, width + 16, 8)
    relative = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    step = {"none": 0.0, "q8": 0.13, "q4": 0.5}[rounding.kind]
    options = {
        "ratio": ratio, "at": 6, "overlap": overlap, "first": first, "eps": 1e-6, "rounding": rounding,
        "dtype": dtype,
    }  # fmt: skip
    tolerance = Tolerance(relative, 0.02 if step else 0.0, step)
    return Case(name, (source, offset, 1 + normal((width,), 7) / 4, table), options, tolerance)


OP = KernelOp("compress", compress, refuses, cases)
