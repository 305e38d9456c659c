"""Ops with a derivative, for training, where the reference's shortest form has none. The same bits.

MLX can't differentiate a view (rotation), nor a gather by computed indices (experts, indexed rows). Inference
keeps the shorter forms: each of these costs something per call.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from dsv4_mlx.ops.reference import attend as attending
from dsv4_mlx.ops.reference import compress as compressing
from dsv4_mlx.ops.reference import index_select as selecting
from dsv4_mlx.ops.reference import latents as lowering
from dsv4_mlx.ops.reference import query_heads as querying
from dsv4_mlx.ops.reference import rotate as rotating
from dsv4_mlx.ops.reference import route as routing
from dsv4_mlx.ops.table import Ops


def rotate(x: mx.array, table: mx.array) -> mx.array:
    """As the reference: x [..., K]."""
    turned: mx.array = _rotated(x, table)  # type: ignore[assignment]
    return turned


@mx.custom_function
def _rotated(x: mx.array, table: mx.array) -> mx.array:  # [..., K]
    return rotating.rotate(x, table)


@_rotated.vjp
def _rotated_back(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    """The derivative [..., K] of a rotation is the rotation back; the table is a constant."""
    table = primals[1]
    return rotating.rotate(cotangent, mx.conjugate(table)), mx.zeros_like(table)


def attend(*arguments: Any) -> mx.array:
    """As the reference: q [B, T, H, K]."""
    return attending.attend(*arguments, rotate=rotate)


def latents(*arrays: mx.array, **options: Any) -> tuple[mx.array, mx.array]:
    """As the reference: low [B, T, Q + K]."""
    return lowering.latents(*arrays, **options, rotate=rotate)


def query_heads(*arrays: mx.array, **options: Any) -> mx.array:
    """As the reference: q [B, T, H * K]."""
    return querying.query_heads(*arrays, **options, rotate=rotate)


def compress(*arguments: Any, **options: Any) -> mx.array:
    """As the reference: source [B, S, W]."""
    return compressing.compress(*arguments, **{"pool": pool_groups, **options})


def pool_groups(*arrays: mx.array, **options: Any) -> mx.array:
    """As the reference: values and gates [B, G, P, c * K]."""
    return compressing.pool_groups(*arrays, **options, rotate=rotate)


def index_select(*arrays: Any) -> mx.array:
    """As the reference, uint32 [B, T, J]: a choice, which has no slope."""
    return mx.stop_gradient(selecting.index_select(*arrays))


def route(
    x: mx.array, gate: mx.array, bias: mx.array, *, count: int, scale: float
) -> tuple[mx.array, mx.array]:
    """As the reference, ids and weights [B, T, A]; the weights have a slope, the choice has none."""
    ids, _ = routing.route(x, gate, bias, count=count, scale=scale)
    return routing.route_hashed(x, gate, mx.stop_gradient(ids), scale=scale)


TRAINABLE = Ops(
    latents=latents,
    query_heads=query_heads,
    rotate=rotate,
    attend=attend,
    compress=compress,
    index_select=index_select,
    route=route,
    name="reference, trainable",
)
