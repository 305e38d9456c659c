"""Products in float32 from weights of any float dtype, with a bias that goes round."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_close

from dsv4_mlx.ops.reference.project import project


@pytest.mark.parametrize(("rows", "phase"), [(1, 0), (1, 3), (4, 0), (3, 2), (11, 1)])
def test_bias_goes_round(rng: np.random.Generator, rows: int, phase: int) -> None:
    x, weight, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, rows, 24), (7, 24), (4, 7)))
    found = project(mx.array(x), mx.array(weight), mx.array(bias), phase)
    expected = x.astype(float) @ weight.T.astype(float) + bias[(phase + np.arange(rows)) % 4]
    assert_close(np.array(found), expected, OP, "rows")


def test_a_bfloat16_weight_is_multiplied_in_float32(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 3, 64)).astype(np.float32)
    weight = mx.array(rng.standard_normal((5, 64)).astype(np.float32)).astype(mx.bfloat16)
    found = project(mx.array(x), weight)
    expected = x.astype(float) @ np.array(weight.astype(mx.float32)).T.astype(float)
    assert found.dtype == mx.float32
    assert_close(np.array(found), expected, OP, "rows")
