"""The first half of attention's output projection: groups of neighbouring heads, a matrix for each."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.reference.expert_ffn import matrix_product
from dsv4_mlx.ops.types import Bank


def group_project(x: mx.array, bank: Bank) -> mx.array:
    """x [B, T, H, K], bank of G matrices [L, H / G * K] -> [B, T, G * L] in x's dtype (docs/model.md 3.3, 7).

    Group g is heads g * H / G and on; its matrix is number g, and its results stand together.
    """
    batch, rows, heads, width = x.shape
    groups, rank, _ = bank.codes.shape
    grouped = x.reshape(batch, rows, groups, heads // groups * width).swapaxes(1, 2)
    return matrix_product(grouped, bank).swapaxes(1, 2).reshape(batch, rows, groups * rank)
