"""The ops a model computes with, injected as one frozen value: no switch, no global, no environment."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import mlx.core as mx

from dsv4_mlx import kernels
from dsv4_mlx.kernels.launch import Launcher
from dsv4_mlx.operands import Mix
from dsv4_mlx.reference import trainable
from dsv4_mlx.reference.attend import attend
from dsv4_mlx.reference.compress import compress
from dsv4_mlx.reference.expert_ffn import expert_ffn
from dsv4_mlx.reference.hc_head import hc_head
from dsv4_mlx.reference.hc_post import hc_post
from dsv4_mlx.reference.hc_pre import hc_pre
from dsv4_mlx.reference.index_select import index_select
from dsv4_mlx.reference.rotate import rotate
from dsv4_mlx.reference.round_trip import hadamard, q4, q8_rows
from dsv4_mlx.reference.route import route, route_hashed

Rounding = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Ops:
    """Every op by name; each entry has the signature and the meaning of its reference."""

    hc_pre: Callable[..., tuple[mx.array, Mix]] = hc_pre
    hc_post: Callable[[mx.array, mx.array, Mix], mx.array] = hc_post
    hc_head: Callable[..., mx.array] = hc_head
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate
    compress: Callable[..., mx.array] = compress
    index_select: Callable[..., mx.array] = index_select
    attend: Callable[..., mx.array] = attend
    route: Callable[..., tuple[mx.array, mx.array]] = route
    route_hashed: Callable[..., tuple[mx.array, mx.array]] = route_hashed
    expert_ffn: Callable[..., mx.array] = expert_ffn
    name: str = field(default="reference")


REFERENCE = Ops()
TRAINABLE = Ops(
    rotate=trainable.rotate,
    compress=trainable.compress,
    index_select=trainable.index_select,
    route=trainable.route,
    name="reference, trainable",
)


def with_kernels(launcher: Launcher, without: Collection[str] = ()) -> Ops:
    """Every op that has a kernel, but those named in `without`, run by `launcher`; the others are references.

    So is a single call that a kernel refuses, such as one of a width it was not written for.
    """
    chosen = {
        op.name: op.bound(launcher, otherwise=getattr(REFERENCE, op.name))
        for op in kernels.ALL
        if op.name not in without
    }
    return replace(REFERENCE, **chosen, name="kernels" if chosen else REFERENCE.name)


def _same(x: mx.array) -> mx.array:
    return x


@dataclass(frozen=True)
class Numerics:
    """Which simulated quantisation a run applies to key/value rows and to the indexer's queries and keys.

    All take float32. `rows(x, channels, block)` rounds the first `channels` channels, the unrotated ones, of
    window and compressed rows; `index(x)` whole index rows.
    """

    name: str
    rows: Callable[[mx.array, int, int], mx.array]
    index: Rounding


def _official_index(x: mx.array) -> mx.array:
    return q4(hadamard(x), 32)


# The Hadamard transform is orthogonal and applied to queries and keys alike: without Q4 it changes nothing.
EXACT = Numerics("exact", lambda x, channels, block: x, _same)
OFFICIAL = Numerics("official", q8_rows, _official_index)
NUMERICS = {"official": OFFICIAL, "exact": EXACT}
