"""Kernels of the small chains: a row alone and in a batch, calls they refuse, faults that are noticed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels import compress, hc_head, hc_post, hc_pre, latents, project, query_heads, route
from dsv4_mlx.ops.kernels.cases import normal, rope_table
from dsv4_mlx.ops.kernels.hc_pre import pending_streams
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.kernels.op import KernelOp, disagreement
from dsv4_mlx.ops.table import REFERENCE, with_kernels
from dsv4_mlx.ops.types import Rounding, Streams

Q8, Q4 = Rounding("q8", 32, 16), Rounding("q4", 64, 32)
ROWS = 5
EPS = {"hc_eps": 1e-6, "norm_eps": 1e-6}


def streams(at: slice) -> Streams:
    x, out, mix = pending_streams((1, ROWS, 4, 96), mx.float32, 1.0)
    assert out is not None and mix is not None
    return Streams(x[:, at], out[:, at], type(mix)(*(part[:, at] for part in mix)))


def rows(width: int, at: slice) -> mx.array:
    return normal((1, ROWS, width), width)[:, at]


# Each op on rows `at` of one batch.
ON_ROWS: dict[str, Callable[[Any, slice], Any]] = {
    "hc_pre": lambda ops, at: ops.hc_pre(
        streams(at), normal((24, 384), 1), normal((24,), 2), normal((96,), 3), iterations=20,
        dtype=mx.bfloat16, **EPS,
    ),
    "hc_post": lambda ops, at: ops.hc_post(streams(at)),
    "hc_head": lambda ops, at: ops.hc_head(
        streams(at).x, normal((4, 384), 1), normal((4,), 2), normal((96,), 3), **EPS
    ),
    "latents": lambda ops, at: ops.latents(
        rows(164, at), normal((100,), 1), normal((64,), 2), rope_table(ROWS, 64, 4)[at], eps=1e-6, rounding=Q8
    ),
    "query_heads": lambda ops, at: ops.query_heads(
        rows(192, at), rope_table(ROWS, 64, 4)[at], heads=3, eps=None, rounding=Q4
    ),
    "project": lambda ops, at: ops.project(
        rows(64, at), normal((33, 64), 1).astype(mx.bfloat16), normal((8, 33), 2), at.start
    ),
    "route": lambda ops, at: ops.route(
        rows(64, at), normal((40, 64), 1).astype(mx.bfloat16), normal((40,), 2), count=6, scale=1.5
    ),
    "route_hashed": lambda ops, at: ops.route_hashed(
        rows(64, at), normal((40, 64), 1).astype(mx.bfloat16),
        mx.argsort(rows(40, at), axis=-1)[..., :6].astype(mx.int32), scale=1.5,
    ),
}  # fmt: skip


def leaves(tree: Any) -> Iterator[mx.array]:
    if isinstance(tree, mx.array):
        yield tree
    elif tree is not None:
        for part in tree:
            yield from leaves(part)


@pytest.mark.parametrize("name", ON_ROWS)
def test_a_row_alone_is_what_it_is_in_a_batch(name: str) -> None:
    """Bit for bit."""
    ops = with_kernels(Proven(check=False))
    together = list(leaves(ON_ROWS[name](ops, slice(0, ROWS))))
    for row in range(ROWS):
        alone = list(leaves(ON_ROWS[name](ops, slice(row, row + 1))))
        for one, all_ in zip(alone, together, strict=True):
            assert mx.array_equal(one, all_[:, row : row + 1]).item()


def test_a_group_alone_is_what_it_is_in_a_chunk() -> None:
    ops = with_kernels(Proven(check=False))
    ring, weight, table = normal((1, 20, 272), 1), normal((64,), 2), rope_table(5, 64, 4)
    options = {"ratio": 4, "at": 8, "overlap": True, "eps": 1e-6, "rounding": Q8, "dtype": mx.bfloat16}
    together = ops.compress(ring, 0, weight, table, first=True, **options)
    for group in range(1, 5):
        alone = ops.compress(ring, 4 * group - 4, weight, table[group : group + 1], first=False, **options)
        assert mx.array_equal(alone, together[:, group : group + 1]).item()


REFUSED: list[tuple[KernelOp, tuple[Any, ...], dict[str, Any], str]] = [
    (hc_post.OP, (Streams(*pending_streams((1, 1, 3, 64), mx.float32, 1.0)),), {}, "3 streams"),
    (
        hc_post.OP,
        (pending_streams((1, 1, 4, 64), mx.float32, 1.0)._replace(x=mx.zeros((1, 1, 4, 64), mx.bfloat16)),),
        {},
        "bfloat16",
    ),
    (
        hc_head.OP,
        (normal((1, 1, 4, 32), 1), normal((4, 128), 2), normal((4,), 3), normal((32,), 4)),
        EPS,
        "at least 8",
    ),
    (
        hc_pre.OP,
        (Streams(normal((1, 1, 1, 32), 1)), normal((3, 32), 2), normal((3,), 3), normal((32,), 4)),
        {**EPS, "iterations": 20, "dtype": mx.float32},
        "at least 8",
    ),
    (
        latents.OP,
        (rows(164, slice(0, 1)), normal((100,), 1), normal((64,), 2), rope_table(1, 32, 4)),
        {"eps": 1e-6, "rounding": Q8},
        "complex64 [1, 16]",
    ),
    (
        query_heads.OP,
        (rows(66 * 2, slice(0, 1)), rope_table(1, 66, 4)),
        {"heads": 2, "eps": None, "rounding": Rounding()},
        "66 channels",
    ),
    (
        query_heads.OP,
        (rows(96, slice(0, 1)), rope_table(1, 96, 4)),
        {"heads": 1, "eps": None, "rounding": Rounding("q4", 96, 32)},
        "power of two",
    ),
    (
        query_heads.OP,
        (rows(512, slice(0, 1)), rope_table(1, 512, 4)),
        {"heads": 1, "eps": None, "rounding": Rounding("q8", 448, 8)},
        "blocks",
    ),
    (project.OP, (normal((1, 17, 64), 1), normal((8, 64), 2)), {}, "17 rows"),
    (project.OP, (normal((1, 1, 66), 1), normal((8, 66), 2)), {}, "multiple of 4"),
    (
        route.OP,
        (normal((1, 1, 64), 1), normal((40, 64), 2), normal((40,), 3)),
        {"count": 33, "scale": 1.0},
        "33 of 40",
    ),
    (
        route.HASHED,
        (normal((1, 1, 64), 1), normal((40, 64), 2), mx.zeros((1, 1, 6), mx.int64)),
        {"scale": 1.0},
        "int64",
    ),
    (
        compress.OP,
        (normal((1, 8, 128), 1), 0, normal((64,), 2), rope_table(0, 64, 4)),
        {
            "ratio": 8, "at": 0, "overlap": False, "first": True, "eps": 1e-6, "rounding": Rounding(),
            "dtype": mx.float32,
        },
        "no group",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arguments", "options", "why"), REFUSED)
def test_what_a_kernel_cant_do_is_refused(
    op: KernelOp, arguments: tuple[Any, ...], options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match="use the reference") as caught:
        op.bound(Proven())(*arguments, **options)
    assert why in str(caught.value)


def test_a_refused_call_goes_to_the_reference() -> None:
    machine = Proven()
    arguments = normal((1, 17, 64), 1), normal((8, 64), 2)
    found = with_kernels(machine).project(*arguments)
    assert mx.array_equal(found, REFERENCE.project(*arguments)).item() and not machine.launches


# What a kernel asks before it touches a channel, row, column or expert, and the same one too far.
GUARDS = (
    (hc_pre.OP, "source", r"&& d < D;", "&& d <= D;"),
    (hc_pre.OP, "source", r"i < rows \* \(M \+ 1\)", "i <= rows * (M + 1)"),
    (hc_pre.OP, "source", r"lane < C \* C\b", "lane <= C * C"),
    (hc_pre.OP, "source", r"if \(d < D\)", "if (d <= D)"),
    (hc_pre.OP, "header", r"m <= M\b", "m <= M + 1"),
    (hc_pre.OP, "header", r"i < parts\b", "i <= parts"),
    (hc_head.OP, "source", r"if \(d < D\)", "if (d <= D)"),
    (latents.OP, "source", r"i < Q\b", "i <= Q"),
    (latents.OP, "source", r"lane \* E < K\b", "lane * E <= K"),
    (query_heads.OP, "source", r"lane \* E < K\b", "lane * E <= K"),
    (project.OP, "source", r"first \+ c < N\b", "first + c <= N"),
    (project.OP, "header", r"first \+ c < rows\b", "first + c <= rows"),
    (compress.OP, "source", r"lane \* E < K\b", "lane * E <= K"),
    (compress.OP, "header", r"p < P\b", "p <= P"),
    (route.OP, "source", r"expert < N \?", "expert <= N ?"),
    (route.OP, "source", r"if \(lane < A\)", "if (lane <= A)"),
    (route.HASHED, "source", r"if \(lane < A\)", "if (lane <= A)"),
)


@pytest.mark.long
@pytest.mark.parametrize(("op", "part", "pattern", "wider"), GUARDS)
def test_a_guard_one_too_far_is_noticed(op: KernelOp, part: str, pattern: str, wider: str) -> None:
    """By the machine, or by the result, in one at least of the kernel's cases."""
    found = 0

    def launcher(launch: Launch) -> Any:
        nonlocal found
        text = getattr(launch.kernel, part)
        made: dict[str, str] = {part: re.sub(pattern, wider, text)}
        found += made[part] != text
        return Proven()(replace(launch, kernel=replace(launch.kernel, **made)))  # type: ignore[arg-type]

    for case in op.cases():
        try:
            result = op.call(launcher, *case.arguments, **case.options)
        except AssertionError:
            return
        expected = getattr(REFERENCE, op.name)(*case.arguments, **case.options)
        if disagreement(result, expected, case.tolerance) is not None:
            return
    assert found, f"{op.name} has no {pattern}"
    raise AssertionError(f"nothing noticed {wider} in {op.name}")
