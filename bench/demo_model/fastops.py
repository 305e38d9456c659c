"""The model's ops for training on a CPU: the mathematics of `dsv4_mlx.ops.reference`, arranged for speed.

MLX computes exp, sqrt and softmax element by element on x86 and one small product per token and expert.
Here exponentials go through numpy, window attention runs in blocks of queries, and each expert multiplies
all its tokens at once. Attention of CSA layers also reports what it looked at (`Watch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import mlx.core as mx
import numpy as np

from bench.demo_model.trainable import TRAINABLE
from dsv4_mlx.ops.reference.index_select import index_scores
from dsv4_mlx.ops.reference.round_trip import hadamard, q4, rounded
from dsv4_mlx.ops.table import Ops
from dsv4_mlx.ops.types import AttendedRows, Bank, Rounding

NOTHING = -1e30
Op = Callable[..., mx.array]


def _differentiable(backward: Callable[..., Any]) -> Callable[[Op], Op]:
    """An op with a gradient of our own: `backward(inputs, cotangent, output)`."""

    def wrap(forward: Op) -> Op:
        made: Any = mx.custom_function(forward)
        made.vjp(backward)
        return cast(Op, made)

    return wrap


def _exp_vjp(x: mx.array, cotangent: mx.array, out: mx.array) -> mx.array:
    return cotangent * out


@_differentiable(_exp_vjp)
def exp(x: mx.array) -> mx.array:
    """exp, several times faster than MLX's on x86."""
    mx.eval(x)
    return mx.array(np.exp(np.asarray(x)))


def _softmax_vjp(x: mx.array, cotangent: mx.array, out: mx.array) -> mx.array:
    weighted = cotangent * out
    return weighted - out * mx.sum(weighted, axis=-1, keepdims=True)


@_differentiable(_softmax_vjp)
def softmax(x: mx.array) -> mx.array:
    """Over the last axis."""
    mx.eval(x)
    values = np.asarray(x)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    values /= values.sum(axis=-1, keepdims=True)
    return mx.array(values)


def sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + exp(mx.maximum(-x, -80.0)))


def swiglu(gate_up: mx.array, limit: float) -> mx.array:
    gate, up = mx.split(gate_up, 2, axis=-1)
    gate = mx.minimum(gate, limit)
    return gate * sigmoid(gate) * mx.clip(up, -limit, limit)


def _permute_vjp(primals: Any, cotangent: mx.array, out: mx.array) -> Any:
    _, order, inverse = primals
    return mx.take(cotangent, inverse, axis=0), mx.zeros_like(order), mx.zeros_like(inverse)


@_differentiable(_permute_vjp)
def permute(x: mx.array, order: mx.array, inverse: mx.array) -> mx.array:
    """Rows of x in another order; the gradient is the inverse permutation instead of a scatter."""
    return mx.take(x, order, axis=0)


def expert_ffn(
    x: mx.array,
    ids: mx.array,
    weights: mx.array,
    gate_up: Bank,
    down: Bank,
    limit: float,
    start: mx.array,
    *,
    chunk: int,
) -> mx.array:
    """As the reference, an expert at a time over all its tokens. Reads the ids on the host."""
    del chunk  # chooses between kernels; here there are none
    batch, rows, width = x.shape
    chosen = ids.shape[-1]
    mx.eval(ids)
    flat = np.asarray(ids).reshape(-1)
    order = np.argsort(flat, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(order.size)
    ends = np.searchsorted(flat[order], np.arange(gate_up.codes.shape[0] + 1)).tolist()
    forward, back = mx.array(order.astype(np.int32)), mx.array(inverse.astype(np.int32))
    spread = mx.broadcast_to(x.reshape(-1, 1, width), (batch * rows, chosen, width)).reshape(-1, width)
    sorted_x = permute(spread, forward, back)
    scale = permute(weights.reshape(-1, 1), forward, back)
    parts = []
    for expert in range(gate_up.codes.shape[0]):
        a, b = ends[expert], ends[expert + 1]
        if a < b:
            hidden = swiglu(sorted_x[a:b] @ gate_up.codes[expert].T, limit) * scale[a:b]
            parts.append(hidden @ down.codes[expert].T)
    out = permute(mx.concatenate(parts, axis=0), back, forward)
    return mx.sum(out.reshape(batch, rows, chosen, width), axis=-2) + start


@dataclass
class Watch:
    """What a forward pass is asked to show, and what it showed.

    query, source: int [B, M] positions: the query that predicts a copied token, and where that token
    stands; `valid` [B, M] float. `select`: whether the indexer's top-k cuts rows off. `learn`: whether the
    indexer is compared with the attention it should predict.
    """

    query: mx.array | None = None
    source: mx.array | None = None
    valid: mx.array | None = None
    select: bool = False
    learn: bool = False
    guides: list[mx.array] = field(default_factory=list)
    divergences: list[mx.array] = field(default_factory=list)
    scores: mx.array | None = None  # of the layer being computed
    loads: list[mx.array] = field(default_factory=list)


def training_ops(window: int, watch: Watch) -> Ops:
    """The ops of one forward pass."""

    def attend(
        q: mx.array,
        near: AttendedRows,
        compressed: AttendedRows | None,
        sinks: mx.array,
        inverse: mx.array,
    ) -> mx.array:
        out = _attend(q, near.rows, compressed, sinks, window, watch)
        return TRAINABLE.rotate(out, inverse[:, None])

    def index_select(
        q: mx.array,
        weights: mx.array,
        keys: mx.array,
        mask: mx.array | None,
        count: int,
        filled: None = None,
    ) -> mx.array:
        total = keys.shape[1]
        if not watch.learn and not watch.select:
            return mx.broadcast_to(mx.arange(total), (*q.shape[:2], total))
        scores = index_scores(q, weights, keys) * (q.shape[2] * q.shape[3]) ** -0.5
        if watch.learn:
            watch.scores = scores
            _index_guide(scores, mask, window, watch)
        if not watch.select:
            return mx.broadcast_to(mx.arange(total), (*q.shape[:2], total))
        scores = mx.stop_gradient(scores if mask is None else scores + mask)
        mx.eval(scores)
        indices = np.argpartition(-np.asarray(scores), count - 1, axis=-1)[..., :count]
        return mx.array(indices.astype(np.int32))

    def route(
        x: mx.array, gate: mx.array, bias: mx.array, *, count: int, scale: float
    ) -> tuple[mx.array, mx.array]:
        ids, shares = TRAINABLE.route(x, gate, bias, count=count, scale=scale)
        watch.loads.append(ids)
        return ids, shares

    return replace(
        TRAINABLE, attend=attend, index_select=index_select, expert_ffn=expert_ffn, route=route,
        latents=partial(TRAINABLE.latents, round=_straight),
        query_heads=partial(TRAINABLE.query_heads, round=_straight),
        compress=partial(TRAINABLE.compress, pool=_pool, round=_straight), name="training",
    )  # fmt: skip


def _straight(x: mx.array, rounding: Rounding) -> mx.array:
    """The round trip forward, the identity backward."""
    if rounding.kind == "q4":
        x = hadamard(x)
        return x + mx.stop_gradient(q4(x, rounding.block) - x)
    return x + mx.stop_gradient(rounded(x, rounding) - x)


def _pool(
    values: mx.array, gates: mx.array, weight: mx.array, table: mx.array,
    *, overlap: bool, first: bool, eps: float,
) -> mx.array:  # fmt: skip
    """As the reference from position 0, with the softmax over the group as exponentials and sums."""
    if overlap:
        width = values.shape[-1] // 2
        values = _overlapped(values, width, 0.0)
        gates = _overlapped(gates, width, NOTHING)
    weights = exp(gates - mx.stop_gradient(mx.max(gates, axis=2, keepdims=True)))
    pooled = mx.sum(values * weights, axis=2) / mx.sum(weights, axis=2)
    rows = mx.fast.rms_norm(pooled, weight, eps)
    return TRAINABLE.rotate(rows, table)


def _overlapped(x: mx.array, width: int, fill: float) -> mx.array:
    nothing = mx.full((x.shape[0], 1, x.shape[2], width), fill, x.dtype)
    previous = mx.concatenate([nothing, x[:, :-1, :, :width]], axis=1)
    return mx.concatenate([previous, x[..., width:]], axis=2)


def _attend(
    q: mx.array, near: mx.array, compressed: AttendedRows | None, sinks: mx.array, window: int, watch: Watch
) -> mx.array:  # fmt: skip
    """Window attention in blocks of `window` queries against their own block and the one before."""
    batch, count, heads, width = q.shape
    limit = window
    window = min(window, count)
    blocks = -(-count // window)
    padded = blocks * window
    local_q = _padded(q, padded).reshape(batch, blocks, window * heads, width)
    own = _padded(near, padded).reshape(batch, blocks, window, width)
    keys = own
    if blocks > 1:
        before = mx.concatenate([mx.zeros_like(own[:, :1]), own[:, :-1]], axis=1)
        keys = mx.concatenate([before, own], axis=2)
    scores = (local_q @ keys.swapaxes(-1, -2)).reshape(batch, blocks, window, heads, -1)
    scores = scores + _local_bias(blocks, window)[:, :, None]
    parts = [scores]
    far_bias, shared = None, None
    if compressed is not None:
        shared = compressed.rows
        far_bias = _far_bias(compressed, shared.shape[1], batch)  # [B, T, 1, N] or [1, T, 1, N]
        far = (q.reshape(batch, count * heads, width) @ shared.swapaxes(-1, -2)).reshape(
            batch, count, heads, -1
        )
        if watch.learn and watch.scores is not None and far.shape[-1] == watch.scores.shape[-1]:
            watch.divergences.append(_divergence(far, compressed, watch.scores))
            watch.scores = None
        far = far + far_bias
        parts.append(_padded(far, padded).reshape(batch, blocks, window, heads, -1))
    parts.append(mx.broadcast_to(sinks[:, None], (batch, blocks, window, heads, 1)))
    p = softmax(mx.concatenate(parts, axis=-1))
    span = keys.shape[2]
    out = p[..., :span].reshape(batch, blocks, window * heads, span) @ keys
    out = out.reshape(batch, padded, heads, width)[:, :count]
    if shared is not None:
        p_far = p[..., span:-1].reshape(batch, padded, heads, -1)[:, :count]
        far_out = p_far.reshape(batch, count * heads, -1) @ shared
        out = out + far_out.reshape(batch, count, heads, width)
    if shared is not None and watch.query is not None and shared.shape[1] == count // 4:  # CSA only
        _guide(q, near, shared, far_bias, sinks, limit, watch)
    return out


def _padded(x: mx.array, rows: int) -> mx.array:
    missing = rows - x.shape[1]
    if missing == 0:
        return x
    return mx.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])


def _local_bias(blocks: int, window: int) -> mx.array:
    """0 or NOTHING [blocks, window, keys]: a query sees itself and the window - 1 rows before it."""
    query = np.arange(window)[:, None]
    if blocks == 1:
        return mx.array(np.where(np.arange(window)[None] <= query, 0.0, NOTHING).astype(np.float32))[None]
    key = np.arange(-window, window)[None]
    seen = (key <= query) & (key > query - window)
    first = seen & (key >= 0)
    table = np.stack([first] + [seen] * (blocks - 1))
    return mx.array(np.where(table, 0.0, NOTHING).astype(np.float32))


def _far_bias(compressed: AttendedRows, total: int, batch: int) -> mx.array:
    """Added to scores [B, T, H, N]: rows that a query doesn't see, or has not picked, get NOTHING."""
    if compressed.mask is None:
        raise ValueError("training passes have more than one row")
    bias = mx.maximum(compressed.mask, NOTHING)
    if compressed.indices is None or compressed.indices.shape[-1] == total:
        return bias[None, :, None] if bias.ndim == 2 else bias[:, :, None]
    mx.eval(compressed.indices, bias)
    indices = np.asarray(compressed.indices).astype(np.int64)
    table = np.full((batch, indices.shape[1], total), NOTHING, np.float32)
    np.put_along_axis(table, indices, np.asarray(bias), axis=-1)
    return mx.array(table)[:, :, None]


def _divergence(far: mx.array, compressed: AttendedRows, scores: mx.array) -> mx.array:
    """KL(mean attention over compressed rows || softmax of index scores), mean over queries that see any."""
    total = scores.shape[-1]
    counts = (mx.arange(far.shape[1]) + 1) // 4
    visible = mx.arange(total)[None] < counts[:, None]
    bias = mx.where(visible, 0.0, NOTHING)
    target = mx.stop_gradient(mx.mean(softmax(far + bias[:, None]), axis=2))
    shifted = scores + bias
    top = mx.stop_gradient(mx.max(shifted, axis=-1, keepdims=True))
    log_q = shifted - top - mx.log(mx.sum(exp(shifted - top), axis=-1, keepdims=True))
    entropy = target * mx.log(mx.maximum(target, 1e-9))
    each = mx.sum(mx.where(visible, entropy - target * log_q, 0.0), axis=-1)
    return mx.mean(mx.where(counts > 0, each, 0.0))


def _guide(
    q: mx.array, near: mx.array, shared: mx.array, far_bias: mx.array | None, sinks: mx.array, window: int,
    watch: Watch,
) -> None:  # fmt: skip
    """-log of the mean share of attention, over heads, that falls on the source of a copied token.

    Inside the window the source is its raw row; beyond it, the two compressed rows that pool it.
    """
    query, source, valid = watch.query, watch.source, watch.valid
    if query is None or source is None or valid is None or far_bias is None:
        return
    batch, count, heads, width = q.shape
    total = shared.shape[1]
    picked = _rows_at(q.reshape(batch, count, -1), query).reshape(batch, -1, heads, width)
    number = picked.shape[1]
    positions = query[..., None] - mx.arange(window - 1, -1, -1)  # [B, M, window]
    inside = positions >= 0
    rows = _rows_at(near, mx.maximum(positions, 0).reshape(batch, -1)).reshape(batch, number, window, width)
    local = picked @ rows.swapaxes(-1, -2) + mx.where(inside, 0.0, NOTHING)[:, :, None]
    far = (picked.reshape(batch, -1, width) @ shared.swapaxes(-1, -2)).reshape(batch, number, heads, total)
    bias = mx.broadcast_to(far_bias[:, :, 0], (batch, count, total))
    far = far + _rows_at(bias, query)[:, :, None]
    sink = mx.broadcast_to(sinks[:, None], (batch, number, heads, 1))
    p = mx.mean(softmax(mx.concatenate([local, far, sink], axis=-1)), axis=2)  # [B, M, window + N + 1]
    in_window = query - source < window
    hit_local = (positions == source[..., None]) & in_window[..., None]
    group = source[..., None] // 4
    index = mx.arange(total)
    hit_far = ((index == group) | (index == group + 1)) & ~in_window[..., None]
    share = mx.sum(p[..., :window] * hit_local, axis=-1) + mx.sum(p[..., window:-1] * hit_far, axis=-1)
    watch.guides.append(mx.sum(-mx.log(share + 1e-3) * valid) / mx.maximum(mx.sum(valid), 1.0))


def _index_guide(scores: mx.array, mask: mx.array | None, window: int, watch: Watch) -> None:
    """As `_guide`, for the indexer: beyond the window, rows that pool a copied token should score best."""
    query, source, valid = watch.query, watch.source, watch.valid
    if query is None or source is None or valid is None:
        return
    seen = scores if mask is None else scores + mx.maximum(mask, NOTHING)
    p = softmax(_rows_at(seen, query))  # [B, M, N]
    index, group = mx.arange(scores.shape[-1]), source[..., None] // 4
    share = mx.sum(p * ((index == group) | (index == group + 1)), axis=-1)
    wanted = valid * (query - source >= window)
    watch.divergences.append(mx.sum(-mx.log(share + 1e-4) * wanted) / mx.maximum(mx.sum(wanted), 1.0))


def _rows_at(x: mx.array, positions: mx.array) -> mx.array:
    """x [B, T, W], positions [B, M] -> [B, M, W]."""
    batch, count, width = x.shape
    flat = (positions + mx.arange(batch)[:, None] * count).reshape(-1)
    return mx.take(x.reshape(batch * count, width), flat, axis=0).reshape(batch, -1, width)
