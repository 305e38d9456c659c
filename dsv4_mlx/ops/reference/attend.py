"""Attention of all heads over one key/value head: window and compressed rows, one softmax, a sink."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from dsv4_mlx.ops.reference.room import room_mask
from dsv4_mlx.ops.reference.rotate import rotate
from dsv4_mlx.ops.types import AttendedRows

_BLOCK = 1 << 25  # gathered elements [T, indices, K] alive at once: 128 MB in float32
_SHARED = 2**31 - 1  # elements [T, N, K] of rows that all queries share, as a product sees them: no memory


def attend(
    q: mx.array,
    window: AttendedRows,
    compressed: AttendedRows | None,
    sinks: mx.array,
    inverse: mx.array,
    *,
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate,
) -> mx.array:
    """q [B, T, H, K], scaled -> [B, T, H, K] in the rows' dtype. Keys are values (docs/model.md 3.3).

    `p_n = exp(s_n) / (sum_n exp(s_n) + exp(sink_h))`, s = q . row, sinks [H] float32 unscaled; the sums of
    values are rotated back at the queries' positions by `inverse`, complex64 [T, >= K / 2].
    Rows beyond `filled` get no share and so change no sum. Scores, softmax and sums are float32. Gathered
    rows are taken a block of queries at a time.
    """
    return rotate(_sums(q.astype(mx.float32), window, compressed, sinks), inverse[:, None]).astype(
        window.rows.dtype
    )


def _sums(q: mx.array, window: AttendedRows, compressed: AttendedRows | None, sinks: mx.array) -> mx.array:
    """float32 [B, T, H, K] -> the shares' sums of values, float32."""
    if compressed is None:
        return _attend(q, window, None, sinks)
    rows, mask, indices, _ = compressed
    each, most = (rows.shape[1], _SHARED) if indices is None else (indices.shape[-1], _BLOCK)
    step = max(1, most // (each * q.shape[-1]))
    if indices is None and step >= q.shape[1]:
        return _attend(q, window, compressed, sinks)
    parts = []
    for a in range(0, q.shape[1], step):
        block = slice(a, min(q.shape[1], a + step))
        seen = None if mask is None else mask[..., block, :]
        one_window = window._replace(mask=None if window.mask is None else window.mask[block])
        part = None if indices is None else indices[:, block]
        one = compressed._replace(mask=seen, indices=part)
        parts.append(_attend(q[:, block], one_window, one, sinks))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def _attend(q: mx.array, window: AttendedRows, compressed: AttendedRows | None, sinks: mx.array) -> mx.array:
    """q [B, T, H, K] -> the sums of values, float32 [B, T, H, K]."""
    recent = window.rows.astype(mx.float32)[:, None]  # [B, 1, S, K]: all queries and heads share the rows
    scores = [_scores(q, recent, _seen(window))]
    pooled = None
    if compressed is not None:
        rows, _, indices, _ = compressed
        pooled = rows[:, None] if indices is None else _gather(rows, indices)  # [B, T or 1, N, K]
        pooled = pooled.astype(mx.float32)
        scores.append(_scores(q, pooled, _seen(compressed)))
    scores.append(mx.broadcast_to(sinks[:, None], (*q.shape[:-1], 1)))
    p = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1)
    span = recent.shape[2]
    out = p[..., :span] @ recent
    if pooled is not None:
        out = mx.addmm(out, p[..., span:-1], pooled)
    return out


def _seen(rows: AttendedRows) -> mx.array | None:
    """Of rows [B, N, K] or indices [B, T, J] the mask [(B,) T, N or J], those beyond `filled` hidden."""
    if rows.filled is None:
        return rows.mask
    places = rows.rows.shape[1] if rows.indices is None else rows.indices.shape[2]
    room = room_mask(places, rows.filled)
    return room if rows.mask is None else rows.mask + room


def _scores(q: mx.array, rows: mx.array, mask: mx.array | None) -> mx.array:
    """q [B, T, H, K], rows [B, T or 1, S, K], mask [(B,) T, S] -> [B, T, H, S]."""
    keys = rows.swapaxes(-1, -2)
    return q @ keys if mask is None else mx.addmm(mask[..., None, :], q, keys)


def _gather(rows: mx.array, indices: mx.array) -> mx.array:
    """rows [B, N, K], indices [B, T, k] -> [B, T, k, K]. An index like rows[0] would copy all of the rows."""
    if rows.shape[0] == 1:
        return mx.take(rows.squeeze(0), indices, axis=0)
    pairs = zip(mx.split(rows, rows.shape[0]), mx.split(indices, rows.shape[0]), strict=True)
    return mx.concatenate([_gather(row, index) for row, index in pairs])
