"""Kernel of `group_project`: a quantised matrix for each group of heads, read where it lies."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.banks import FLOATS, INPUTS, bank_bytes, bank_inputs, bank_refuses, bank_template
from dsv4_mlx.ops.kernels.cases import HALF, narrow_bank
from dsv4_mlx.ops.kernels.cases import bank as made_bank
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, kernel, run
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import Bank

FEW = 16  # rows; more are multiplied in tiles
CHANNELS = 4  # of a simdgroup
TILE = 32


def group_project(launcher: Launcher, x: mx.array, bank: Bank) -> mx.array:
    """As the reference: x [B, T, H, K] -> [B, T, G * L] in x's dtype. The number of rows chooses the body."""
    batch, tokens, heads, width = x.shape
    groups, rank, _ = bank.codes.shape
    rows = batch * tokens
    few = rows <= FEW
    launch = Launch(
        kernel("group_project", "rows" if few else "tiles", ("x", *INPUTS), ("out",), strided=True),
        (mx.contiguous(x.reshape(rows, groups, heads // groups * width)), *bank_inputs(bank)),
        grid=(
            64 * -(-rank // (2 * CHANNELS)) if few else 128 * -(-rank // TILE),
            groups,
            rows if few else -(-rows // TILE),
        ),
        threadgroup=(64 if few else 128, 1, 1),
        shapes=((batch, tokens, groups * rank),),
        dtypes=(x.dtype,),
        template=(("X", x.dtype), *((("CHANNELS", CHANNELS),) if few else ()), *bank_template(bank)),
        bytes_read=bank_bytes(bank, groups),
    )
    return run(launcher, launch)[0]


def refuses(x: mx.array, bank: Bank) -> str | None:  # [B, T, H, K]
    if x.dtype not in FLOATS:
        return f"x is {x.dtype}, expected one of {FLOATS}"
    if bank.codes.ndim != 3:
        return f"the bank has shape {bank.codes.shape}, expected a matrix for each group"
    groups, values = bank.codes.shape[0], x.shape[2] * x.shape[3]
    if values % groups:
        return f"{values} values can't be divided into {groups} groups"
    return bank_refuses(bank, None, values // groups)


def cases() -> list[Case]:
    made = [
        # batch, tokens, heads, width, groups, rank, format
        ("one row, mxfp8", _arguments(1, 1, 4, 64, 2, 31, "mxfp8")),
        ("two rows, affine, 4 bits", _arguments(2, 1, 4, 64, 2, 33, "affine4")),
        ("long rows", _arguments(1, 1, 8, 128, 1, 8, "mxfp8")),
        ("31 rows, mxfp8", _arguments(1, 31, 2, 32, 2, 33, "mxfp8")),
        ("33 rows, affine, 4 bits", _arguments(1, 33, 2, 64, 2, 31, "affine4")),
        ("no rows", _arguments(1, 0, 2, 32, 2, 32, "mxfp8")),
    ]
    found = [Case(name, given, tolerance=Tolerance(1e-5)) for name, given in made]
    x, bank = _arguments(1, 2, 4, 64, 2, 33, "affine4")
    half = x.astype(mx.bfloat16), narrow_bank(bank, mx.bfloat16)
    tiles, eights = _arguments(1, 33, 2, 64, 2, 32, "mxfp8")
    return [
        *found,
        Case("bfloat16", half, tolerance=HALF),
        Case("33 rows, bfloat16", (tiles.astype(mx.bfloat16), eights), tolerance=HALF),
    ]


def _arguments(
    batch: int, tokens: int, heads: int, width: int, groups: int, rank: int, name: str
) -> tuple[mx.array, Bank]:
    """x [B, T, H, K] and a bank [G, L, H / G * K]."""
    x = mx.random.normal((batch, tokens, heads, width), key=mx.random.key(tokens + rank))
    return x, made_bank(groups, rank, heads // groups * width, name, 5)


OP = KernelOp("group_project", group_project, refuses, cases)
