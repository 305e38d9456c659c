"""Kernels of `expert_ffn`: both products of the routed experts, read as they are stored.

Few tokens: two launches, a simdgroup for some channels of a (token, expert) pair. Many: the pairs are sorted
by expert and multiplied in tiles of 32, so that an expert's weights are read once per tile; the results of a
token are added in the order of its list, as for few. The number of tokens of the chunk decides and nothing
else: not how many experts there are, nor where they lie, nor how the pairs are grouped.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from dsv4_mlx.ops.kernels.banks import FLOATS, INPUTS, bank_bytes, bank_inputs, bank_refuses, bank_template
from dsv4_mlx.ops.kernels.cases import cases
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, kernel, run, uniforms
from dsv4_mlx.ops.kernels.op import KernelOp
from dsv4_mlx.ops.types import Bank

FEW = 16  # tokens; more are sorted by expert
TILE = 32  # pairs
CHANNELS = 4  # of a simdgroup
ROOM = 256  # experts: `order` is compiled for a multiple, not anew for every number of slots in memory


def expert_ffn(
    launcher: Launcher,
    x: mx.array,
    ids: mx.array,
    weights: mx.array,
    gate_up: Bank,
    down: Bank,
    limit: float,
    start: mx.array | None = None,
    *,
    chunk: int | None = None,
) -> mx.array:
    """As the reference: x [B, T, D], ids and weights [B, T, A] -> [B, T, D] float32."""
    if (chunk or x.shape[0] * x.shape[1]) <= FEW:
        return _few(launcher, x, ids, weights, gate_up, down, limit, start)
    order, tiles = _sorted(launcher, ids.reshape(-1), gate_up.codes.shape[0])
    return many(launcher, x, ids, weights, gate_up, down, limit, start, order, tiles)


def _few(
    launcher: Launcher, x: mx.array, ids: mx.array, weights: mx.array, gate_up: Bank, down: Bank,
    limit: float, start: mx.array | None,
) -> mx.array:  # fmt: skip
    """x [B, T, D] of few tokens, ids and weights [B, T, A] -> float32 [B, T, D]."""
    width, inner = x.shape[2], gate_up.codes.shape[1] // 2
    tokens, pairs = x.shape[0] * x.shape[1], ids.size
    first = Launch(
        kernel("expert_ffn", "gate_up", ("x", "ids", "weights", *INPUTS, "limit"), ("hidden",), strided=True),
        (mx.contiguous(x), mx.contiguous(ids), mx.contiguous(weights), *bank_inputs(gate_up), _float(limit)),
        grid=(_simdgroups(inner), pairs, 1),
        threadgroup=(64, 1, 1),
        shapes=((*ids.shape, inner),),
        dtypes=(x.dtype,),
        template=(("X", x.dtype), ("CHANNELS", CHANNELS), *bank_template(gate_up)),
        bytes_read=bank_bytes(gate_up, min(pairs, gate_up.codes.shape[0])),
    )
    hidden = run(launcher, first)[0]
    second = Launch(
        kernel("expert_ffn", "down", ("hidden", "ids", *INPUTS, "start"), ("out",), strided=True),
        (hidden, mx.contiguous(ids), *bank_inputs(down), _or(start, hidden)),
        grid=(_simdgroups(width), tokens, 1),
        threadgroup=(64, 1, 1),
        shapes=(x.shape,),
        dtypes=(mx.float32,),
        template=(("CHANNELS", CHANNELS), ("START", start is not None), *bank_template(down)),
        bytes_read=bank_bytes(down, min(pairs, down.codes.shape[0])) | _unread("start", start),
    )
    return run(launcher, second)[0]


def many(
    launcher: Launcher, x: mx.array, ids: mx.array, weights: mx.array, gate_up: Bank, down: Bank,
    limit: float, start: mx.array | None, order: mx.array, tiles: mx.array,
) -> mx.array:  # fmt: skip
    """The pairs in `order`, cut into `tiles` [N, 3]: expert, first and end in the order."""
    width, inner, chosen = x.shape[2], gate_up.codes.shape[1] // 2, ids.shape[2]
    rows, pairs = x.reshape(-1, width), ids.size
    first = Launch(
        kernel(
            "expert_ffn", "sorted_gate_up",
            ("x", "ids", "weights", *INPUTS, "limit", "order", "tiles"), ("hidden",), strided=True,
        ),
        (
            mx.contiguous(rows), mx.contiguous(ids.reshape(-1, chosen)), mx.contiguous(weights.reshape(-1)),
            *bank_inputs(gate_up), _float(limit), order, tiles,
        ),
        grid=(128 * -(-inner // TILE), tiles.shape[0], 1),
        threadgroup=(128, 1, 1),
        shapes=((pairs, inner),),
        dtypes=(x.dtype,),
        template=(("X", x.dtype), *bank_template(gate_up)),
        bytes_read=bank_bytes(gate_up, min(pairs, gate_up.codes.shape[0])) | {"ids": 0},
    )  # fmt: skip
    second = Launch(
        kernel("expert_ffn", "sorted_down", ("hidden", *INPUTS, "order", "tiles"), ("out",), strided=True),
        (run(launcher, first)[0], *bank_inputs(down), order, tiles),
        grid=(128 * -(-width // TILE), tiles.shape[0], 1),
        threadgroup=(128, 1, 1),
        shapes=((rows.shape[0], chosen, width),),
        dtypes=(mx.float32,),
        template=(("X", x.dtype), *bank_template(down)),
        bytes_read=bank_bytes(down, min(pairs, down.codes.shape[0])),
    )
    parts = run(launcher, second)[0]
    total = Launch(
        kernel("expert_ffn", "sum", ("y", "start"), ("out",)),
        (parts, _or(start, parts)),
        grid=(width, rows.shape[0], 1),
        threadgroup=(min(width, 256), 1, 1),
        shapes=(x.shape,),
        dtypes=(mx.float32,),
        template=(("START", start is not None),),
        bytes_read=_unread("start", start),
    )
    return run(launcher, total)[0]


def _sorted(launcher: Launcher, ids: mx.array, experts: int) -> tuple[mx.array, mx.array]:
    """The pairs of ids [B T A] in the order of their experts, and tiles [n, 3] of them.

    No more than these can be needed.
    """
    tiles = max(3, ids.size // TILE + min(ids.size, experts))
    launch = Launch(
        kernel("expert_ffn", "order", ("ids", "tile_count"), ("order", "tiles")),
        (ids, uniforms(tiles)),
        grid=(256, 1, 1),
        threadgroup=(256, 1, 1),
        shapes=((ids.size,), (tiles, 3)),
        dtypes=(mx.uint32, mx.uint32),
        template=(("EXPERTS", ROOM * -(-experts // ROOM)),),
    )
    order, cut = run(launcher, launch)
    return order, cut


def _simdgroups(channels: int) -> int:
    """Threads for all channels, whole threadgroups of two simdgroups."""
    return 64 * -(-channels // (2 * CHANNELS))


def _or(start: mx.array | None, other: mx.array) -> mx.array:  # [B, T, D]
    return other if start is None else mx.contiguous(start)


def _unread(name: str, array: mx.array | None) -> dict[str, int]:  # [B, T, D]
    return {name: 0} if array is None else {}


@cache
def _float(value: float) -> mx.array:  # [1]
    return mx.array([value], mx.float32)


def refuses(
    x: mx.array, ids: mx.array, weights: mx.array, gate_up: Bank, down: Bank, limit: float,
    start: mx.array | None = None, *, chunk: int | None = None,
) -> str | None:  # fmt: skip
    """As `expert_ffn`: x [B, T, D]."""
    width, inner = x.shape[2], gate_up.codes.shape[-2] // 2
    if x.dtype not in FLOATS or weights.dtype != mx.float32:
        return f"x is {x.dtype} and weights {weights.dtype}, expected one of {FLOATS} and float32"
    if not mx.issubdtype(ids.dtype, mx.integer):
        return f"ids are {ids.dtype}, expected integers"
    if chunk is not None and chunk < 1:
        return f"the chunk has {chunk} tokens"
    if start is not None and (start.dtype != mx.float32 or start.shape != x.shape):
        return f"start is {start.dtype} {start.shape}, expected float32 {x.shape}"
    if gate_up.codes.ndim != 3 or down.codes.ndim != 3 or gate_up.codes.shape[-2] % 2:
        return f"the banks have shapes {gate_up.codes.shape} and {down.codes.shape}"
    return bank_refuses(gate_up, None, width) or bank_refuses(down, width, inner)


OP = KernelOp("expert_ffn", expert_ffn, refuses, cases)
