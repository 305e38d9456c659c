"""Cases of the experts' kernels: formats, ragged sizes, extreme values, banks that are views of records.

Inputs of cases: the same numbers on every machine and at every call.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from dsv4_mlx.ops.kernels.op import Case, Tolerance
from dsv4_mlx.ops.types import Bank

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def normal(shape: tuple[int, ...], seed: int) -> mx.array:
    """Normally distributed float32 [shape]."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def uniform(shape: tuple[int, ...], seed: int) -> mx.array:
    """float32 [shape] in [0, 1)."""
    return mx.array(np.random.default_rng(seed).random(shape, np.float32))


def rope_table(rows: int, width: int, plain: int) -> mx.array:
    """A rotation table complex64 [rows, width / 2] whose first `plain` factors are 1."""
    angles = np.random.default_rng(rows).uniform(0, 6, (rows, width // 2))
    angles[:, :plain] = 0
    return mx.array(np.exp(1j * angles).astype(np.complex64))


FORMATS = {
    "mxfp4": ("mxfp4", 4, 32),
    "mxfp8": ("mxfp8", 8, 32),
    "affine4": ("affine", 4, 64),
    "affine3": ("affine", 3, 32),
    "affine2": ("affine", 2, 64),
    "affine6": ("affine", 6, 32),
    "affine8": ("affine", 8, 128),
}
_FLOAT = Tolerance(1e-5)
# The reference rounds each product, and MLX's CPU adds in bfloat16: it is the reference that is this far off.
# tests/ops/kernels/test_rounding.py holds the kernels to less.
HALF = Tolerance(0.05)


def cases() -> list[Case]:
    made = [
        # tokens, experts, chosen, width, inner, format, activations, size of x
        ("one token, mxfp4", routed(1, 6, 3, 64, 64, "mxfp4", 1.0)),
        ("31 channels of hidden values short of a tile", routed(2, 8, 4, 64, 96, "mxfp4", 1.0)),
        ("two tokens, affine, 4 bits", routed(2, 8, 2, 128, 64, "affine4", 1.0)),
        ("affine, 3 bits", routed(1, 4, 2, 32, 32, "affine3", 1.0)),
        ("affine, 2 bits", routed(1, 4, 2, 64, 64, "affine2", 1.0)),
        ("affine, 6 bits", routed(1, 4, 2, 32, 32, "affine6", 1.0)),
        ("affine, 8 bits", routed(1, 4, 2, 128, 128, "affine8", 1.0)),
        ("saturated", routed(1, 4, 2, 64, 64, "mxfp4", 1e4)),
        ("tiny", routed(1, 4, 2, 64, 64, "mxfp4", 1e-30)),
        ("two tokens, mxfp8", routed(2, 6, 3, 64, 96, "mxfp8", 1.0)),
        ("33 tokens", routed(33, 5, 2, 64, 32, "mxfp4", 1.0)),
        ("33 tokens, mxfp8", routed(33, 5, 2, 96, 64, "mxfp8", 1.0)),
        ("33 tokens, affine, 4 bits", routed(33, 5, 2, 64, 64, "affine4", 1.0)),
        ("all tokens to one expert", routed(33, 1, 1, 32, 32, "mxfp4", 1.0)),
        ("no tokens", routed(0, 4, 2, 64, 64, "mxfp4", 1.0)),
    ]
    found = [Case(name, given, tolerance=_FLOAT) for name, given in made]
    x, _, *rest = routed(33, 2, 1, 32, 32, "mxfp4", 1.0)
    full = (x, (mx.arange(33) // 32).astype(mx.uint32).reshape(1, 33, 1), *rest)
    started = routed(2, 6, 3, 64, 64, "mxfp4", 1.0)
    return [
        *found,
        Case("a whole tile and one token", full, tolerance=_FLOAT),
        Case("added to what is there", (*started, mx.ones((1, 2, 64))), tolerance=_FLOAT),
        Case(
            "33 tokens, added to what is there",
            (*routed(33, 4, 2, 32, 32, "mxfp4", 1.0), mx.ones((1, 33, 32))),
        ),
        Case("bfloat16", narrow(routed(2, 6, 3, 64, 64, "affine4", 1.0), mx.bfloat16), tolerance=HALF),
        Case(
            "33 tokens, float16", narrow(routed(33, 4, 2, 64, 64, "affine4", 1.0), mx.float16), tolerance=HALF
        ),
        Case(
            "33 tokens, bfloat16", narrow(routed(33, 4, 2, 64, 32, "mxfp4", 1.0), mx.bfloat16), tolerance=HALF
        ),
        Case("rows with gaps", strided(routed(2, 6, 3, 64, 64, "mxfp4", 1.0)), tolerance=_FLOAT),
    ]


def routed(
    tokens: int, experts: int, chosen: int, width: int, inner: int, name: str, size: float
) -> tuple[mx.array, mx.array, mx.array, Bank, Bank, float]:
    """x [1, T, D], ids and weights [1, T, A], gate|up bank [E, 2 I, D], down bank [E, D, I], limit.

    Tokens go to different experts as long as there are enough, so that the bytes read are known.
    """
    keys = mx.random.split(mx.random.key(tokens + width), 4)
    x = mx.random.normal((1, tokens, width), key=keys[0]) * size
    ids = (mx.arange(tokens * chosen, dtype=mx.uint32) * 7 % experts).reshape(1, tokens, chosen)
    weights = mx.random.uniform(shape=(1, tokens, chosen), key=keys[1])
    return (
        x, ids, weights, bank(experts, 2 * inner, width, name, 2), bank(experts, width, inner, name, 3), 10.0
    )  # fmt: skip


def bank(experts: int, rows: int, columns: int, name: str, seed: int) -> Bank:  # [E, out, in]
    mode, bits, group = FORMATS[name]
    weight = mx.random.normal((experts, rows, columns), key=mx.random.key(seed)) * columns**-0.5
    codes, scales, *biases = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
    return Bank(codes, scales, biases[0] if biases else None, mode, bits, group)


def narrow(
    arguments: tuple[mx.array, mx.array, mx.array, Bank, Bank, float], dtype: mx.Dtype
) -> tuple[mx.array, mx.array, mx.array, Bank, Bank, float]:
    """The same, x [1, T, D] of that type, and with it the scales and biases of affine matrices."""
    x, ids, weights, gate_up, down, limit = arguments
    return x.astype(dtype), ids, weights, narrow_bank(gate_up, dtype), narrow_bank(down, dtype), limit


def narrow_bank(bank: Bank, dtype: mx.Dtype) -> Bank:  # [E, out, in]
    if bank.scales is None or bank.biases is None:
        return bank
    return bank._replace(scales=bank.scales.astype(dtype), biases=bank.biases.astype(dtype))


def strided(
    arguments: tuple[mx.array, mx.array, mx.array, Bank, Bank, float],
) -> tuple[mx.array, mx.array, mx.array, Bank, Bank, float]:
    """The same, with each bank's matrices [E, out, in] apart from each other, as in records."""
    x, ids, weights, gate_up, down, limit = arguments
    return x, ids, weights, _apart(gate_up), _apart(down), limit


def _apart(bank: Bank) -> Bank:  # [E, out, in]
    def spread(array: mx.array | None) -> mx.array | None:  # [E, out, in]
        if array is None:
            return None
        experts, rows, columns = array.shape
        wide = mx.concatenate([array.reshape(experts, -1), mx.zeros((experts, 48), array.dtype)], axis=1)
        return mx.as_strided(wide.reshape(-1), array.shape, (rows * columns + 48, columns, 1), 0)

    codes, scales = spread(bank.codes), spread(bank.scales)
    if codes is None:
        raise ValueError("a bank has codes")
    return bank._replace(codes=codes, scales=scales, biases=spread(bank.biases))
