"""Router: which experts a token goes to, and with what weights."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.reference.project import project


def route(
    x: mx.array, gate: mx.array, bias: mx.array, *, count: int, scale: float
) -> tuple[mx.array, mx.array]:
    """x [B, T, D], bias [E] float32, gate [E, D] -> (ids uint32, weights float32), each [B, T, A].

    `p = sqrt(softplus(x . gate^T))`; the A largest of p + bias are chosen, best first, a tie to the smaller
    id; the weights are `scale * p / sum of chosen p`: the bias never enters them (docs/model.md 3.6).
    """
    p = _scores(x, gate)
    ids = mx.stop_gradient(mx.argsort(-(p + bias), axis=-1)[..., :count])
    return ids, _weights(p, ids, scale)


def route_hashed(x: mx.array, gate: mx.array, ids: mx.array, *, scale: float) -> tuple[mx.array, mx.array]:
    """As `route`, with the experts ids [B, T, A] given by the token: layers 0-2."""
    return ids, _weights(_scores(x, gate), ids, scale)


def _scores(x: mx.array, gate: mx.array) -> mx.array:  # [B, T, E]
    return mx.sqrt(mx.logaddexp(project(x.astype(mx.float32), gate), 0.0))


def _weights(p: mx.array, ids: mx.array, scale: float) -> mx.array:  # [B, T, A]
    chosen = mx.take_along_axis(p, ids, axis=-1)
    return chosen * (scale / mx.sum(chosen, axis=-1, keepdims=True))
