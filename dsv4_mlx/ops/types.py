"""Named groups of arrays that ops take and give: what a reference and a kernel must agree on.

Letters of shapes are those of ops/reference/__init__.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import mlx.core as mx

# Of the position, not of the model: a Python int, or uint32 [1] where a step is traced for any position.
Number = int | mx.array


class StreamMix(NamedTuple):
    """What `hc_post` needs, float32: post / 2 [B, T, C] and comb [B, T, C, C] (row: input stream)."""

    half_post: mx.array
    comb: mx.array


class Streams(NamedTuple):
    """The C streams x [B, T, C, D] float32; `pending` [B, T, D] is the last sublayer's output where it is not
    mixed in yet, and `mix` says how.
    """

    x: mx.array
    pending: mx.array | None = None
    mix: StreamMix | None = None


class BlockInput(NamedTuple):
    """What a sublayer starts from: the `streams` [B, T, C, D] with nothing pending, its normed input
    [B, T, D] as float32 (`x_f32`) and in the activations' dtype (`x`), and how to mix its output back.
    """

    streams: mx.array
    x_f32: mx.array
    x: mx.array
    mix: StreamMix


class Rounding(NamedTuple):
    """The simulated quantisation of a row (docs/model.md 3.0).

    "q8": its first `channels` channels in blocks of `block`. "q4": Hadamard transform, then all channels in
    blocks. "none": the row as it is.
    """

    kind: Literal["none", "q8", "q4"] = "none"
    channels: int = 0
    block: int = 0


class AttendedRows(NamedTuple):
    """Key/value rows and who sees them. Of the window: rows [B, S, K]; mask float32 [T, S], added to scores:
    0 where a query sees a row and -inf where not; None where all see all. Compressed: N in place of S.

    With `indices` [B, T, J] a query attends to those rows only, and `mask` is [B, T, J] over them.
    `filled` uint32 [1]: how many rows are there, from the first on; the others are room. None: all.
    """

    rows: mx.array
    mask: mx.array | None
    indices: mx.array | None = None
    filled: mx.array | None = None


class Bank(NamedTuple):
    """Matrices, one per expert or group, or a single one without the first dimension.

    codes [E, out, in or packed in]; without `scales` they are plain floats.
    mode "mxfp4" or "mxfp8" (group 32, scales uint8 E8M0) or "affine" (with `biases`); bits and group as MLX
    takes them.
    """

    codes: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    mode: str = ""
    bits: int = 0
    group: int = 0
