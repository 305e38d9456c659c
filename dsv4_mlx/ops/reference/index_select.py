"""Indexer: which compressed rows each query attends to."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.reference.room import room_mask

_BLOCK = 1 << 25  # score elements [T, heads, N] alive at once: 128 MB


def index_scores(q: mx.array, weights: mx.array, keys: mx.array) -> mx.array:
    """q [B, T, H, K] and weights [B, T, H] (signed) float32, keys [B, N, K] -> scores [B, T, N] float32.

    `score[t, e] = sum_h weights[t, h] * relu(q[t, h] . keys[e])` (docs/model.md 3.5): relu, then the sum.
    The official scale of the weights is left out: it is positive and changes no order.
    """
    products = mx.maximum(q @ keys.astype(mx.float32)[:, None].swapaxes(-1, -2), 0.0)
    return (weights[..., None, :] @ products).squeeze(-2)


def index_select(
    q: mx.array, weights: mx.array, keys: mx.array, mask: mx.array | None, count: int,
    filled: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """The `count` best rows of every query: uint32 [B, T, count], count <= N, here best first.

    Which rows they are is the contract, and their order is not: a kernel gives another one.

    mask: float32 [T, N], 0 where a query sees a row and -inf where not, or None where all see all. A tie goes
    to the smaller index (the sort is stable). A query that sees fewer than `count` rows gets invisible ones
    after them: the caller masks indices at or beyond the visible number.
    filled: uint32 [1], >= count: how many keys there are, from the first on; None: all N.
    """
    if filled is not None:
        room = room_mask(keys.shape[1], filled)
        mask = room if mask is None else mask + room
    rows, heads = q.shape[1:3]
    step = max(1, _BLOCK // (heads * keys.shape[1]))
    indices = []
    for a in range(0, max(1, rows), step):
        b = min(rows, a + step)
        scores = index_scores(q[:, a:b], weights[:, a:b], keys)
        if mask is not None:
            scores = scores + mask[a:b]
        indices.append(mx.argsort(-scores, axis=-1)[..., :count])
    return indices[0] if len(indices) == 1 else mx.concatenate(indices, axis=1)
