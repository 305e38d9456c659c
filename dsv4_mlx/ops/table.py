"""The ops a model computes with, injected as one frozen value: no switch, no global, no environment."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from dsv4_mlx.ops import kernels
from dsv4_mlx.ops.kernels.launch import Launcher
from dsv4_mlx.ops.reference.attend import attend
from dsv4_mlx.ops.reference.compress import compress
from dsv4_mlx.ops.reference.expert_ffn import expert_ffn, shared_ffn
from dsv4_mlx.ops.reference.group_project import group_project
from dsv4_mlx.ops.reference.hc_head import hc_head
from dsv4_mlx.ops.reference.hc_post import hc_post
from dsv4_mlx.ops.reference.hc_pre import hc_pre
from dsv4_mlx.ops.reference.index_select import index_select
from dsv4_mlx.ops.reference.latents import latents
from dsv4_mlx.ops.reference.project import project
from dsv4_mlx.ops.reference.query_heads import query_heads
from dsv4_mlx.ops.reference.rotate import rotate
from dsv4_mlx.ops.reference.route import route, route_hashed
from dsv4_mlx.ops.types import Bank, BlockInput, Rounding, Streams

NUMERIC_VERSION = 3
"""Which arithmetic this program computes with. Every change that can change a bit of a result, the order of a
sum above all, raises it: a state that was saved under another is not exact and is computed again."""


def _float32(x: mx.array) -> mx.array:  # [...]
    return x.astype(mx.float32)


@dataclass(frozen=True)
class Ops:
    """Every op by name; each entry has the signature and the meaning of its reference.

    `as_weight`: how a weight of `project` and the router is kept in memory, given as it is stored.
    `launcher`: what runs the kernels among them; None where there are none.
    """

    hc_pre: Callable[..., BlockInput] = hc_pre
    hc_post: Callable[[Streams], mx.array] = hc_post
    hc_head: Callable[..., mx.array] = hc_head
    latents: Callable[..., tuple[mx.array, mx.array]] = latents
    query_heads: Callable[..., mx.array] = query_heads
    rotate: Callable[[mx.array, mx.array], mx.array] = rotate
    project: Callable[..., mx.array] = project
    compress: Callable[..., mx.array] = compress
    index_select: Callable[..., mx.array] = index_select
    attend: Callable[..., mx.array] = attend
    group_project: Callable[[mx.array, Bank], mx.array] = group_project
    route: Callable[..., tuple[mx.array, mx.array]] = route
    route_hashed: Callable[..., tuple[mx.array, mx.array]] = route_hashed
    expert_ffn: Callable[..., mx.array] = expert_ffn
    shared_ffn: Callable[[mx.array, Bank, Bank, float], mx.array] = shared_ffn
    as_weight: Callable[[mx.array], mx.array] = _float32
    name: str = field(default="reference")
    launcher: Launcher | None = field(default=None, compare=False)  # one may not be hashable
    traceable: bool = True  # whether a step may be traced once and replayed

    def identity(self) -> str:
        """The function behind every op, the same text in every run: "attend=MODULE.FUNCTION ..."."""
        names = [f.name for f in fields(self) if f.name not in ("name", "launcher", "traceable")]
        ops: list[tuple[str, Any]] = [(name, getattr(self, name)) for name in names]
        return " ".join(f"{name}={op.__module__}.{op.__qualname__}" for name, op in ops)


REFERENCE = Ops()


def with_kernels(launcher: Launcher, without: Collection[str] = ()) -> Ops:
    """Every op that has a kernel, but those named in `without`, run by `launcher`; the others are references.

    So is a single call that a kernel refuses, such as one of a width it was not written for.
    """
    chosen: dict[str, Any] = {
        op.name: op.bound(launcher, otherwise=getattr(REFERENCE, op.name))
        for op in kernels.ALL
        if op.name not in without
    }
    if not chosen:
        return REFERENCE
    as_weight = _as_stored if "project" in chosen else REFERENCE.as_weight
    return replace(REFERENCE, **chosen, as_weight=as_weight, name="kernels", launcher=launcher)


def without_kernels(ops: Ops, names: Collection[str]) -> Ops:
    """`ops` with the references of the named ops in place of their kernels."""
    return replace(ops, **{name: getattr(REFERENCE, name) for name in names})


def one_by_one(ops: Ops, failed: dict[str, str]) -> Ops:
    """`ops` with every kernel's launches evaluated by themselves. One that raises is computed by its
    reference from then on, and `failed` says what it raised, by the op's name.
    """
    kernel_ops = {op.name for op in kernels.ALL if getattr(ops, op.name) is not getattr(REFERENCE, op.name)}
    alone = {name: _alone(name, getattr(ops, name), failed) for name in kernel_ops}
    return replace(ops, **alone, name="one by one", launcher=None, traceable=False)


def _alone(name: str, op: Callable[..., Any], failed: dict[str, str]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        mx.eval(_arrays([arguments, options]))  # what raises here is not this op's
        if name not in failed:
            try:
                found = op(*arguments, **options)
                mx.eval(_arrays(found))
                return found
            except (RuntimeError, ValueError) as error:
                failed[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return getattr(REFERENCE, name)(*arguments, **options)

    return call


def _arrays(tree: Any) -> list[mx.array]:  # [...] each
    pairs: list[tuple[str, Any]] = tree_flatten([tree])  # type: ignore[assignment]
    return [leaf for _, leaf in pairs if isinstance(leaf, mx.array)]


def _as_stored(x: mx.array) -> mx.array:  # [...] as given
    return x


@dataclass(frozen=True)
class Numerics:
    """Which simulated quantisation a run applies to key/value rows, and to the indexer's queries and keys."""

    name: str
    simulated: bool

    def rows(self, channels: int, block: int) -> Rounding:
        """Of window and compressed rows, whose first `channels` are not rotated."""
        return Rounding("q8", channels, block) if self.simulated else Rounding()

    def index(self, channels: int) -> Rounding:
        """Of index rows and index queries.

        The Hadamard transform is orthogonal and applied to both: without Q4 it changes nothing.
        """
        return Rounding("q4", channels, 32) if self.simulated else Rounding()


EXACT = Numerics("exact", False)
OFFICIAL = Numerics("official", True)
NUMERICS = {"official": OFFICIAL, "exact": EXACT}
