"""The ops a model computes with, injected as one frozen value: no switch, no global, no environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx

from dsv4_mlx.reference import (
    attend,
    compress,
    expert_ffn,
    hc_head,
    hc_post,
    hc_pre,
    index_select,
    rotate,
    round_trip,
    route,
)

Rounding = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Ops:
    """Every op by name; each entry has the signature and the meaning of its reference."""

    hc_pre: Callable[..., tuple[mx.array, hc_pre.Mix]] = hc_pre.hc_pre
    hc_post: Callable[[mx.array, mx.array, hc_pre.Mix], mx.array] = hc_post.hc_post
    hc_head: Callable[..., mx.array] = hc_head.hc_head
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate.rotate
    compress: Callable[..., mx.array] = compress.compress
    index_select: Callable[..., mx.array] = index_select.index_select
    attend: Callable[..., mx.array] = attend.attend
    route: Callable[..., tuple[mx.array, mx.array]] = route.route
    route_hashed: Callable[..., tuple[mx.array, mx.array]] = route.route_hashed
    expert_ffn: Callable[..., mx.array] = expert_ffn.expert_ffn
    name: str = field(default="reference")


REFERENCE = Ops()


def _same(x: mx.array) -> mx.array:
    return x


@dataclass(frozen=True)
class Numerics:
    """Which simulated quantisation a run applies to key/value rows and to the indexer's queries and keys.

    `rows(x, block)` takes the unrotated channels of window and compressed rows; `index(x)` whole index rows.
    """

    name: str
    rows: Callable[[mx.array, int], mx.array]
    index: Rounding


def _official_index(x: mx.array) -> mx.array:
    return round_trip.q4(round_trip.hadamard(x), 32)


# The Hadamard transform is orthogonal and applied to queries and keys alike: without Q4 it changes nothing.
EXACT = Numerics("exact", lambda x, block: x, _same)
OFFICIAL = Numerics("official", round_trip.q8, _official_index)
NUMERICS = {"official": OFFICIAL, "exact": EXACT}
