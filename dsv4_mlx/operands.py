"""Named groups of arrays that ops take and give: what a reference and a kernel must agree on.

Shapes: B batch, T rows of this chunk, S window rows, N compressed rows, H heads, K head width, C streams.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Mix(NamedTuple):
    """What `hc_post` needs, float32: post / 2 [B, T, C] and comb [B, T, C, C] (row: input stream)."""

    half_post: mx.array
    comb: mx.array


class Rows(NamedTuple):
    """Key/value rows and who sees them. rows [B, S, K]; mask float32 [T, S], added to scores: 0 where a query
    sees a row and -inf where not; None where all see all.

    With `picks` [B, T, k] a query attends to those rows only, and `mask` is [B, T, k] over them.
    """

    rows: mx.array
    mask: mx.array | None
    picks: mx.array | None = None


class Bank(NamedTuple):
    """One matrix per expert. codes [E, out, in or packed in]; without `scales` it holds plain floats.

    mode "mxfp4" (group 32, scales uint8 E8M0) or "affine" (with `biases`); bits and group as MLX takes them.
    """

    codes: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    mode: str = ""
    bits: int = 0
    group: int = 0
