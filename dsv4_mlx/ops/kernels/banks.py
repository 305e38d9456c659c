"""What kernels over quantised matrices share: which formats they take, and how a bank is handed to them."""

from __future__ import annotations

import math

import mlx.core as mx

from dsv4_mlx.ops.kernels.launch import Template
from dsv4_mlx.ops.types import Bank

MODES = {"mxfp4": 0, "mxfp8": 1, "affine": 2}  # as in metal/common/quantised.h
FLOATS = (mx.float32, mx.bfloat16, mx.float16)
INPUTS = ("codes", "scales", "biases")

_BITS = {"mxfp4": (4,), "mxfp8": (8,), "affine": (2, 3, 4, 5, 6, 8)}
_GROUPS = {"mxfp4": (32,), "mxfp8": (32,), "affine": (32, 64, 128)}


def bank_inputs(bank: Bank) -> tuple[mx.array, mx.array, mx.array]:
    """codes, scales, biases [E, out, ...]; a format without biases has scales there, which are not read."""
    if bank.scales is None:
        raise ValueError("a bank of plain floats has no codes")
    return bank.codes, bank.scales, bank.scales if bank.biases is None else bank.biases


def bank_template(bank: Bank) -> Template:  # [E, out, in]
    if bank.scales is None:
        raise ValueError("a bank of plain floats has no codes")
    return (
        ("S", bank.scales.dtype),
        ("MODE", MODES[bank.mode]),
        ("BITS", bank.bits),
        ("GROUP", bank.group),
    )


def bank_bytes(bank: Bank, matrices: int) -> dict[str, int]:
    """Bytes of `matrices` different matrices of [E, out, in]."""
    parts = zip(INPUTS, (bank.codes, bank.scales, bank.biases), strict=True)
    return {name: 0 if a is None else matrices * math.prod(a.shape[-2:]) * a.dtype.size for name, a in parts}


def bank_refuses(bank: Bank, rows: int | None, columns: int) -> str | None:
    """Why kernels can't multiply by a bank of matrices [rows, columns]; rows None: any number."""
    if bank.scales is None:
        return "the matrices are plain floats"
    if bank.mode not in MODES or bank.bits not in _BITS[bank.mode] or bank.group not in _GROUPS[bank.mode]:
        return f"format {bank.mode!r} with {bank.bits} bits in groups of {bank.group} is unknown"
    affine = bank.mode == "affine"
    if (bank.biases is not None) != affine:
        return f"format {bank.mode} {'lacks' if affine else 'has'} biases"
    if bank.scales.dtype not in (FLOATS if affine else (mx.uint8,)):
        return f"scales are {bank.scales.dtype}"
    if bank.biases is not None and bank.biases.dtype != bank.scales.dtype:
        return f"biases are {bank.biases.dtype}, scales {bank.scales.dtype}"
    if columns % max(32, bank.group):
        return f"a row has {columns} weights, expected a multiple of {max(32, bank.group)}"
    found, expected = bank.codes.shape[-2:], (rows or bank.codes.shape[-2], columns * bank.bits // 32)
    if found != expected or bank.codes.dtype != mx.uint32:
        return f"codes are {bank.codes.dtype} {list(found)}, expected uint32 {list(expected)}"
    if bank.scales.shape[-2:] != (expected[0], columns // bank.group) or bank.scales.size < 8:
        return f"scales have shape {bank.scales.shape}"
    return None
