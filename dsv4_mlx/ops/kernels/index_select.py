"""Kernels of `index_select`: scores of all keys, then the exact best by the bits of their scores."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.launch import Launch, Launcher, kernel, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance

FLOATS = (mx.float32, mx.bfloat16, mx.float16)
BLOCK = 1 << 25  # scores alive at once: 128 MB
GROUPS = 1024  # threadgroups of a token's scores, at most: each then takes several blocks of 32 keys
THREADS = 512  # that find a row's best
HEADS = (8, 16, 32, 64)
WIDTHS = (32, 64, 128)


def index_select(
    launcher: Launcher, q: mx.array, weights: mx.array, keys: mx.array, mask: mx.array | None, count: int,
    filled: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """As the reference, the indices of a query in ascending order: uint32 [B, T, count]."""
    tokens = q.shape[1]
    step = max(1, BLOCK // (q.shape[0] * keys.shape[1]))
    indices = []
    for a in range(0, max(1, tokens), step):
        seen = None if mask is None else mask[a : a + step]
        indices.append(
            _block(launcher, q[:, a : a + step], weights[:, a : a + step], keys, seen, count, filled)
        )
    return indices[0] if len(indices) == 1 else mx.concatenate(indices, axis=1)


def _block(
    launcher: Launcher, q: mx.array, weights: mx.array, keys: mx.array, mask: mx.array | None, count: int,
    filled: mx.array | None,
) -> mx.array:  # fmt: skip
    """A block of queries [B, T, H, K] -> uint32 [B, T, J]."""
    batch, tokens, heads, width = q.shape
    rows = keys.shape[1]
    there = uniforms(rows) if filled is None else filled
    simdgroups = min(4, heads // 8)
    threads = 32 * simdgroups
    score = Launch(
        kernel("index_select", "scores", ("q", "weights", "keys", "mask", "filled"), ("scores",)),
        (q, weights, keys, weights if mask is None else mask, there),
        grid=(threads * min(GROUPS, -(-rows // 32)), batch * tokens, 1),
        threadgroup=(threads, 1, 1),
        shapes=((batch, tokens, rows),),
        dtypes=(mx.float32,),
        template=(
            ("T", keys.dtype),
            ("K", width),
            ("SIMDGROUPS", simdgroups),
            ("TILES", heads // 8 // simdgroups),
            ("MASKED", mask is not None),
        ),
        bytes_read={} if mask is not None else {"mask": 0},
    )
    scores = run(launcher, score)[0].reshape(batch * tokens, rows)
    best = Launch(
        kernel("index_select", "best", ("scores", "filled", "wanted"), ("indices",)),
        (scores, there, uniforms(count)),
        grid=(THREADS, batch * tokens, 1),
        threadgroup=(THREADS, 1, 1),
        shapes=((batch * tokens, count),),
        dtypes=(mx.uint32,),
    )
    return run(launcher, best)[0].reshape(batch, tokens, count)


def refuses(
    q: mx.array, weights: mx.array, keys: mx.array, mask: mx.array | None, count: int,
    filled: mx.array | None = None,
) -> str | None:  # fmt: skip
    """As `index_select`: q [B, T, H, K]."""
    heads, width = q.shape[2:]
    if q.dtype != mx.float32 or weights.dtype != mx.float32 or keys.dtype not in FLOATS:
        return f"q is {q.dtype}, weights {weights.dtype}, keys {keys.dtype}: not float32, float32, a float"
    if mask is not None and mask.dtype != mx.float32:
        return f"mask is {mask.dtype}, expected float32"
    if heads not in HEADS or width not in WIDTHS:
        return f"there are {heads} heads of {width}, expected {HEADS} of {WIDTHS}"
    if not 1 <= count <= keys.shape[1]:
        return f"{count} indices are wanted of {keys.shape[1]} rows"
    return None


def cases() -> list[Case]:
    made = [
        # batch, tokens, heads, width, rows, indices, dtype, queries see
        ("31 rows", _arguments(1, 1, 8, 32, 31, 16, mx.float32, None)),
        ("32 rows, all wanted", _arguments(1, 1, 16, 32, 32, 32, mx.float32, None)),
        ("33 rows", _arguments(2, 2, 16, 32, 33, 16, mx.bfloat16, None)),
        ("127 rows, 64 heads", _arguments(1, 1, 64, 64, 127, 64, mx.bfloat16, None)),
        ("128 rows", _arguments(1, 1, 8, 32, 128, 1, mx.float32, None)),
        ("129 rows, some hidden", _arguments(1, 3, 8, 32, 129, 20, mx.float32, (0, 7, 129))),
        ("many rows", _arguments(1, 1, 8, 32, 2500, 512, mx.float32, None)),
        ("no queries", _arguments(1, 0, 8, 32, 33, 16, mx.float32, None)),
    ]
    found = [Case(name, given, tolerance=Tolerance(any_order=True)) for name, given in made]
    equal = (mx.ones((1, 2, 8, 32)), mx.ones((1, 2, 8)), mx.ones((1, 600, 32)), None, 40)
    below = (-mx.ones((1, 1, 8, 32)), mx.ones((1, 1, 8)), mx.ones((1, 70, 32)), None, 33)
    steps = mx.floor(mx.arange(2200) % 7 / 2)[None, :, None] * mx.ones((1, 2200, 32))
    tied = (mx.ones((1, 1, 8, 32)), mx.ones((1, 1, 8)), steps, None, 777)
    signed = (mx.ones((1, 1, 8, 32)), -mx.ones((1, 1, 8)), steps[:, :90], None, 40)
    holes = mx.where(mx.arange(600)[None, :, None] % 30 == 7, 1.0, mx.nan) * mx.ones((1, 600, 32))
    nothing = (mx.ones((1, 1, 8, 32)), mx.ones((1, 1, 8)), holes, None, 40)
    return [
        *found,
        Case("fewer numbers than wanted, the rest NaN", nothing, tolerance=Tolerance(any_order=True)),
        Case("all equal", equal, tolerance=Tolerance(any_order=True)),
        Case("zeros of both signs", below, tolerance=Tolerance(any_order=True)),
        Case("ties at the edge", tied, tolerance=Tolerance(any_order=True)),
        Case("negative scores", signed, tolerance=Tolerance(any_order=True)),
    ]


def _arguments(
    batch: int, tokens: int, heads: int, width: int, rows: int, count: int, dtype: mx.Dtype,
    seen: tuple[int, ...] | None,
) -> tuple[mx.array, mx.array, mx.array, mx.array | None, int]:  # fmt: skip
    """q [B, T, H, K], weights [B, T, H], keys [B, N, K], mask [T, N], J.

    Quarters and eighths, of which sums are exact: a score is the same number whatever the order.
    """
    keys = mx.random.split(mx.random.key(rows), 3)
    q = mx.random.randint(-8, 9, (batch, tokens, heads, width), key=keys[0]) * 0.25
    weights = mx.random.randint(-32, 33, (batch, tokens, heads), key=keys[1]) * 0.125
    key = (mx.random.randint(-8, 9, (batch, rows, width), key=keys[2]) * 0.25).astype(dtype)
    if seen is None:
        return q, weights, key, None, count
    visible = mx.arange(rows) < mx.array(seen)[:, None]
    return q, weights, key, mx.where(visible, 0.0, -mx.inf), count


OP = KernelOp("index_select", index_select, refuses, cases)
