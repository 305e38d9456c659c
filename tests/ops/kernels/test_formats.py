"""Every code of every format, at every scale, through the kernels: the number that MLX says, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels import group_project
from dsv4_mlx.ops.types import Bank

FAST = Proven(check=False)  # cases have checked these kernels


def seen(bank: Bank, rows: int) -> np.ndarray:
    """The weights [G, R, I] as products with rows of the unit matrix, in either form of the kernel."""
    groups, _, words = bank.codes.shape
    width = words * 32 // bank.bits
    one = mx.eye(width)
    found = []
    for a in range(0, width, rows):
        x = mx.broadcast_to(one[a : a + rows, None], (min(rows, width - a), groups, width))[None]
        product = group_project.group_project(FAST, x, bank)
        found.append(np.array(product).reshape(-1, groups, bank.codes.shape[1]))
    return np.concatenate(found).transpose(1, 2, 0)


def expected(bank: Bank) -> np.ndarray:
    assert bank.scales is not None
    return np.array(
        mx.dequantize(
            bank.codes, bank.scales, bank.biases, group_size=bank.group, bits=bank.bits, mode=bank.mode,
            dtype=mx.float32,
        )
    )  # fmt: skip


@pytest.mark.parametrize("rows", [16, 32])
def test_fp4(rows: int) -> None:
    """All 16 codes at every scale at which none is infinite; 2^-127 is below the smallest normal number."""
    codes = np.tile(np.arange(16, dtype=np.uint8) * 16 + np.arange(16, dtype=np.uint8)[::-1], (1, 253, 1))
    scales = np.arange(253, dtype=np.uint8)[None, :, None]
    bank = Bank(mx.array(codes.view(np.uint32)), mx.array(scales), None, "mxfp4", 4, 32)
    assert np.array_equal(seen(bank, rows), expected(bank))


@pytest.mark.parametrize("rows", [16, 32])
def test_fp8(rows: int) -> None:
    """All codes that are numbers. A NaN makes the whole product one."""
    numbers = np.delete(np.arange(256), [127, 255]).astype(np.uint8)
    codes = np.resize(numbers, (1, 9, 32))
    scales = np.full((1, 9, 1), 127, np.uint8)
    bank = Bank(mx.array(codes.view(np.uint32)), mx.array(scales), None, "mxfp8", 8, 32)
    assert np.array_equal(seen(bank, rows), expected(bank))
    codes[0, 4, 17] = 255
    found = seen(bank._replace(codes=mx.array(codes.view(np.uint32))), rows)
    assert np.isnan(found[0, 4]).all() and np.isfinite(np.delete(found, 4, axis=1)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine(bits: int, rng: np.random.Generator) -> None:
    """Codes that cross from one word into the next included."""
    weight = mx.array(rng.standard_normal((2, 12, 64)).astype(np.float32))
    bank = Bank(*mx.quantize(weight, group_size=64, bits=bits), "affine", bits, 64)
    for rows in (16, 32):
        assert np.abs(seen(bank, rows) - expected(bank)).max() <= 1e-6
