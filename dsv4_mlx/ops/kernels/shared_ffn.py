"""Kernel of `shared_ffn`: the routed experts' kernels, with one expert that all tokens go to."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from dsv4_mlx.ops.kernels import expert_ffn
from dsv4_mlx.ops.kernels.cases import HALF
from dsv4_mlx.ops.kernels.cases import bank as made_bank
from dsv4_mlx.ops.kernels.launch import Launcher
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import Bank


def shared_ffn(launcher: Launcher, x: mx.array, gate_up: Bank, down: Bank, limit: float) -> mx.array:
    """As the reference: x [B, T, D], single matrices -> [B, T, D] float32."""
    ids, weights, order, tiles = _everyone(x.shape[0], x.shape[1])
    banks = _bank(gate_up), _bank(down)
    if x.shape[0] * x.shape[1] <= expert_ffn.FEW:
        return expert_ffn.expert_ffn(launcher, x, ids, weights, *banks, limit)
    return expert_ffn.many(launcher, x, ids, weights, *banks, limit, None, order, tiles)


@lru_cache(maxsize=16)
def _everyone(batch: int, tokens: int) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Ids and weights [B, T, 1] by which all go to expert 0; order [B T] and tiles [n, 3] of these pairs."""
    count = batch * tokens
    first = mx.arange(0, max(count, 1), expert_ffn.TILE, dtype=mx.uint32)
    tiles = mx.stack([mx.zeros_like(first), first, mx.minimum(first + expert_ffn.TILE, count)], axis=1)
    tiles = mx.concatenate([tiles.astype(mx.uint32), mx.zeros((3, 3), mx.uint32)])  # no fewer than 8 numbers
    ids, weights = mx.zeros((batch, tokens, 1), mx.uint32), mx.ones((batch, tokens, 1))
    made = ids, weights, mx.arange(count, dtype=mx.uint32), tiles
    mx.eval(made)  # once, and not again in every step
    return made


def _bank(bank: Bank) -> Bank:
    """A single matrix [out, in] as a bank of one."""
    scales = None if bank.scales is None else bank.scales[None]
    return bank._replace(
        codes=bank.codes[None], scales=scales, biases=None if bank.biases is None else bank.biases[None]
    )


def refuses(x: mx.array, gate_up: Bank, down: Bank, limit: float) -> str | None:
    """As `shared_ffn`: x [B, T, D]."""
    if gate_up.codes.ndim != 2 or down.codes.ndim != 2:
        return f"the banks have shapes {gate_up.codes.shape} and {down.codes.shape}, expected single matrices"
    ids, weights, _, _ = _everyone(x.shape[0], x.shape[1])
    return expert_ffn.refuses(x, ids, weights, _bank(gate_up), _bank(down), limit)


def cases() -> list[Case]:
    made = [
        ("one token, mxfp8", _arguments(1, 64, 32, "mxfp8")),
        ("two tokens, affine, 4 bits", _arguments(2, 64, 64, "affine4")),
        ("33 tokens, mxfp8", _arguments(33, 32, 64, "mxfp8")),
    ]
    found = [Case(name, given, tolerance=Tolerance(1e-5)) for name, given in made]
    x, *banks, limit = _arguments(1, 64, 64, "mxfp8")
    return [*found, Case("bfloat16", (x.astype(mx.bfloat16), *banks, limit), tolerance=HALF)]


def _arguments(tokens: int, width: int, inner: int, name: str) -> tuple[mx.array, Bank, Bank, float]:
    """x [1, T, D], gate|up [2 I, D], down [D, I], limit."""
    x = mx.random.normal((1, tokens, width), key=mx.random.key(tokens))

    def single(rows: int, columns: int, seed: int) -> Bank:  # [out, in]
        bank = made_bank(1, rows, columns, name, seed)
        scales = None if bank.scales is None else bank.scales[0]
        biases = None if bank.biases is None else bank.biases[0]
        return bank._replace(codes=bank.codes[0], scales=scales, biases=biases)

    return x, single(2 * inner, width, 2), single(width, inner, 3), 10.0


OP = KernelOp("shared_ffn", shared_ffn, refuses, cases)
