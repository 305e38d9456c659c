"""Kernels on 16-bit activations against float32 references of the same numbers: what rounding is left.

The reference is no measure there: MLX's CPU adds in the activations' type, Metal rounds each product.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels import expert_ffn, group_project
from dsv4_mlx.ops.kernels.cases import bank, narrow, narrow_bank, routed
from dsv4_mlx.ops.table import REFERENCE

FAST = Proven(check=False)  # cases have checked these kernels
STEP = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}  # half the distance to the next number, relative


def wide(values: mx.array) -> mx.array:
    return values.astype(mx.float32)


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize(("format", "dtype"), [("mxfp4", mx.bfloat16), ("affine4", mx.float16)])
def test_experts(format: str, dtype: mx.Dtype, tokens: int) -> None:
    """Only hidden values are rounded: by half a step each, in sums whose terms are of either sign."""
    x, ids, weights, gate_up, down, limit = narrow(routed(tokens, 6, 3, 256, 128, format, 1.0), dtype)
    found = expert_ffn.expert_ffn(FAST, x, ids, weights, gate_up, down, limit)
    banks = narrow_bank(gate_up, mx.float32), narrow_bank(down, mx.float32)
    expected = np.array(REFERENCE.expert_ffn(wide(x), ids, weights, *banks, limit))
    assert found.dtype == mx.float32
    error = np.abs(np.array(found) - expected).max() / np.abs(expected).max()
    assert 0 < error < STEP[dtype]


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize(("format", "dtype"), [("mxfp8", mx.bfloat16), ("affine4", mx.float16)])
def test_grouped_projection(format: str, dtype: mx.Dtype, tokens: int) -> None:
    """The result is rounded once."""
    x = mx.random.normal((1, tokens, 8, 64), key=mx.random.key(4)).astype(dtype)
    weight = narrow_bank(bank(2, 40, 256, format, 3), dtype)
    found = group_project.group_project(FAST, x, weight)
    expected = np.array(REFERENCE.group_project(wide(x), narrow_bank(weight, mx.float32)))
    assert found.dtype == dtype
    bound = STEP[dtype] * np.abs(expected) + 1e-5 * np.abs(expected).max()
    assert (np.abs(np.array(wide(found)) - expected) <= bound).all()
