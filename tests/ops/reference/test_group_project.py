"""Grouped output projection: consecutive heads, a matrix a group, plain and quantised."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from compare import OP, assert_close

from dsv4_mlx.ops.reference.group_project import group_project
from dsv4_mlx.ops.types import Bank

B, T, H, K, G, R = 2, 3, 6, 32, 3, 5


def test_each_group_of_heads_has_its_own_matrix(rng: np.random.Generator) -> None:
    x = rng.standard_normal((B, T, H, K)).astype(np.float32)
    weight = rng.standard_normal((G, R, H // G * K)).astype(np.float32)
    found = group_project(mx.array(x), Bank(mx.array(weight)))
    expected = np.einsum("btgi,gri->btgr", x.reshape(B, T, G, -1).astype(np.float64), weight)
    assert_close(np.array(found), expected.reshape(B, T, G * R), OP)


def test_quantised(rng: np.random.Generator) -> None:
    x = mx.array(rng.standard_normal((B, T, H, K)).astype(np.float32))
    weight = mx.array(rng.standard_normal((G, R, H // G * K)).astype(np.float32))
    parts = mx.quantize(weight, group_size=64, bits=4)
    plain = mx.dequantize(*parts, group_size=64, bits=4)
    found = group_project(x, Bank(*parts, "affine", 4, 64))
    assert_close(np.array(found), np.array(group_project(x, Bank(plain))), OP)
