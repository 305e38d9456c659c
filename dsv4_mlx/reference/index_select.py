"""Indexer: which compressed rows each query attends to."""

from __future__ import annotations

import mlx.core as mx

_BLOCK = 1 << 25  # score elements [T, heads, N] alive at once: 128 MB


def index_scores(q: mx.array, weights: mx.array, keys: mx.array) -> mx.array:
    """q [B, T, H, K], weights [B, T, H] (signed, scaled), keys [B, N, K] -> scores [B, T, N] float32.

    `score[t, e] = sum_h weights[t, h] * relu(q[t, h] . keys[e])` (MODEL 3.5): relu per head, then the sum.
    """
    batch, rows, heads, width = q.shape
    flat = q.astype(mx.float32).reshape(batch, rows * heads, width)
    products = mx.maximum(flat @ keys.astype(mx.float32).swapaxes(-1, -2), 0.0)
    products = products.reshape(batch, rows, heads, keys.shape[1])
    return (weights.astype(mx.float32)[..., None, :] @ products).squeeze(-2)


def index_select(
    q: mx.array, weights: mx.array, keys: mx.array, visible: mx.array | None, count: int
) -> mx.array:
    """The `count` best rows of every query, best first: uint32 [B, T, count], count <= N.

    visible: bool [T, N], or None where every query sees every row. A tie goes to the smaller index (the
    sort is stable). A query that sees fewer than `count` rows gets invisible ones after them: the caller
    masks picks at or beyond the visible number.
    """
    rows, heads = q.shape[1:3]
    step = max(1, _BLOCK // (heads * keys.shape[1]))
    picks = []
    for a in range(0, rows, step):
        b = min(rows, a + step)
        scores = index_scores(q[:, a:b], weights[:, a:b], keys)
        if visible is not None:
            scores = mx.where(visible[a:b], scores, -mx.inf)
        picks.append(mx.argsort(-scores, axis=-1)[..., :count])
    return picks[0] if len(picks) == 1 else mx.concatenate(picks, axis=1)
