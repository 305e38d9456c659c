"""Attention of all heads over one key/value head: window and compressed rows, one softmax, a sink."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

_BLOCK = 1 << 25  # gathered elements [T, picks, K] alive at once: 128 MB in float32


class Rows(NamedTuple):
    """Key/value rows and who sees them. rows [B, S, K]; visible bool [T, S], None where all see all.

    With `picks` [B, T, k] a query attends to those rows only, and `visible` is bool [B, T, k] over them.
    """

    rows: mx.array
    visible: mx.array | None
    picks: mx.array | None = None


def attend(q: mx.array, window: Rows, compressed: Rows | None, sinks: mx.array, scale: float) -> mx.array:
    """q [B, T, H, K] -> [B, T, H, K] in q's dtype. Keys are values (MODEL 3.3 step 5).

    `p_n = exp(s_n) / (sum_n exp(s_n) + exp(sink_h))`, s = scale * q . row, sinks [H] float32 unscaled.
    Scores, softmax and sums are float32. Gathered rows are taken a block of queries at a time.
    """
    if compressed is None or compressed.picks is None:
        return _attend(q, window, compressed, sinks, scale)
    picks = compressed.picks
    step = max(1, _BLOCK // (picks.shape[-1] * q.shape[-1]))
    parts = []
    for a in range(0, q.shape[1], step):
        block = slice(a, min(q.shape[1], a + step))
        seen = None if compressed.visible is None else compressed.visible[:, block]
        near = window._replace(visible=None if window.visible is None else window.visible[block])
        parts.append(_attend(q[:, block], near, Rows(compressed.rows, seen, picks[:, block]), sinks, scale))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def _attend(q: mx.array, window: Rows, compressed: Rows | None, sinks: mx.array, scale: float) -> mx.array:
    batch, rows, heads, width = q.shape
    scaled = q.astype(mx.float32) * scale
    near = window.rows.astype(mx.float32)
    scores = [_masked(_shared_scores(scaled, near), window.visible)]
    far = None
    if compressed is not None:
        if compressed.picks is None:
            far = compressed.rows.astype(mx.float32)
            scores.append(_masked(_shared_scores(scaled, far), compressed.visible))
        else:
            far = _gather(compressed.rows, compressed.picks).astype(mx.float32)  # [B, T, k, K]
            scores.append(_masked(scaled @ far.swapaxes(-1, -2), compressed.visible))
    scores.append(mx.broadcast_to(sinks[:, None], (batch, rows, heads, 1)))
    p = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1)
    span = near.shape[1]
    out = _shared_values(p[..., :span], near)
    if far is not None:
        p_far = p[..., span:-1]
        out = out + (_shared_values(p_far, far) if far.ndim == 3 else p_far @ far)
    return out.astype(q.dtype)


def _masked(scores: mx.array, visible: mx.array | None) -> mx.array:
    return scores if visible is None else mx.where(visible[..., None, :], scores, -mx.inf)


def _shared_scores(q: mx.array, rows: mx.array) -> mx.array:
    """[B, T, H, K] x [B, S, K] -> [B, T, H, S]: all heads share the rows, so T * H is one matrix side."""
    batch, count, heads, width = q.shape
    return (q.reshape(batch, count * heads, width) @ rows.swapaxes(-1, -2)).reshape(batch, count, heads, -1)


def _shared_values(p: mx.array, rows: mx.array) -> mx.array:
    batch, count, heads, span = p.shape
    return (p.reshape(batch, count * heads, span) @ rows).reshape(batch, count, heads, -1)


def _gather(rows: mx.array, picks: mx.array) -> mx.array:
    if rows.shape[0] == 1:
        return mx.take(rows[0], picks[0], axis=0)[None]
    return mx.stack([mx.take(rows[b], picks[b], axis=0) for b in range(rows.shape[0])])
