"""Kernels of `hc_pre`: two launches, because no threadgroup can read all of `fn` fast enough alone."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.cases import FLOATS, normal, uniform
from dsv4_mlx.ops.kernels.hc_post import OUT, STREAMS
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import BlockInput, StreamMix, Streams

PART = 64  # channels a threadgroup of the first launch takes
LEAST = 8  # elements: fewer would arrive in another address space
_ROWS = 4  # rows it takes of a chunk, so that `fn` is read a quarter as often
_MOST_THREADS = 512
_MIX = ("x", "out", "half_post", "comb", "fn", "uniforms")
_FINISH = ("x", "partial", "base", "weight", "uniforms", "constants")


def hc_pre(
    launcher: Launcher,
    streams: Streams,
    fn: mx.array,
    base: mx.array,
    weight: mx.array,
    *,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
    dtype: mx.Dtype,
) -> BlockInput:
    """As the reference: streams [B, T, C, D] -> where the next sublayer starts."""
    x, partial = mixed(launcher, streams, fn)
    (*at, count, width) = x.shape
    threads = threads_of(width)
    launch = Launch(
        kernel("hc_pre", "finish", _FINISH, ("normed_f32", "normed", "half_post", "comb")),
        (x, partial, base, weight, uniforms(partial.shape[-1]), constants(hc_eps, norm_eps)),
        grid=(threads * at[0] * at[1], 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=((*at, width), (*at, width), (*at, count), (*at, count, count)),
        dtypes=(mx.float32, dtype, mx.float32, mx.float32),
        template=(
            ("T", dtype), ("C", count), ("D", width), ("M", fn.shape[0]), ("PER", -(-width // threads)),
            ("ITERATIONS", iterations),
        ),
    )  # fmt: skip
    normed_f32, normed, half_post, comb = run(launcher, launch)
    return BlockInput(x, normed_f32, normed, StreamMix(half_post, comb))


def mixed(launcher: Launcher, streams: Streams, fn: mx.array) -> tuple[mx.array, mx.array]:
    """The streams with nothing pending [B, T, C, D], and float32 [B, T, M + 1, parts].

    The latter are parts of the products with the M rows of fn, and of the sum of squares.
    """
    x, out, mix = streams
    batch, rows, count, width = x.shape
    total, parts = batch * rows, -(-width // PART)
    step = 1 if total == 1 else _ROWS
    pending = out is not None and mix is not None
    nothing = constants(0.0)
    launch = Launch(
        kernel("hc_pre", "mix", _MIX, ("y", "partial")),
        (
            x,
            nothing if out is None else out,
            nothing if mix is None else mix.half_post,
            nothing if mix is None else mix.comb,
            fn,
            uniforms(max(total, 1)),
        ),
        grid=(PART * parts, -(-total // step), 1),
        threadgroup=(PART, 1, 1),
        shapes=(x.shape, (batch, rows, fn.shape[0] + 1, parts)),
        dtypes=(mx.float32, mx.float32),
        template=(
            ("C", count), ("D", width), ("M", fn.shape[0]), ("ROWS", step), ("PENDING", pending),
        ),
        bytes_read={} if pending else {"out": 0, "half_post": 0, "comb": 0},
    )  # fmt: skip
    y, partial = run(launcher, launch)
    return y, partial


def threads_of(width: int) -> int:
    """Threads of a threadgroup that holds a row: whole simdgroups."""
    return min(_MOST_THREADS, 32 * -(-width // 32))


def refuses(
    streams: Streams,
    fn: mx.array,
    base: mx.array,
    weight: mx.array,
    *,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
    dtype: mx.Dtype,
) -> str | None:
    """As `hc_pre`: streams [B, T, C, D]."""
    if dtype not in FLOATS or iterations < 1:
        return f"activations are {dtype} after {iterations} iterations, expected one of {FLOATS}, and some"
    return refuses_streams(streams, fn, base, weight)


def refuses_streams(streams: Streams, fn: mx.array, base: mx.array, weight: mx.array) -> str | None:
    """Of streams [B, T, C, D], fn [M, C * D], base [M] and weight [D], as `hc_head` asks too."""
    x, out, mix = streams
    if any(array.dtype != mx.float32 for array in (x, fn, base, weight)):
        return f"streams are {x.dtype}, fn {fn.dtype}, weight {weight.dtype}; expected float32"
    if x.shape[2] not in STREAMS:
        return f"there are {x.shape[2]} streams, expected one of {STREAMS}"
    parts = x.shape[0] * x.shape[1] * -(-x.shape[3] // PART) * (fn.shape[0] + 1)
    if x.size > 0 and min(parts, x.size) < LEAST:
        return f"{list(x.shape)} makes {parts} sums in parts, expected at least {LEAST}"
    if (out is None) != (mix is None):
        return "an output is pending without a mix, or a mix without an output"
    if out is not None and out.dtype not in OUT:
        return f"the pending output is {out.dtype}, expected one of {OUT}"
    return None


def cases() -> list[Case]:
    made = [
        ("31 channels, nothing pending", (1, 1, 4, 31), None, mx.float32, 1.0, 1.0),
        ("32 channels, one stream", (1, 2, 1, 32), mx.float32, mx.float32, 1.0, 1.0),
        ("33 channels, two streams", (1, 3, 2, 33), mx.float32, mx.float32, 1.0, 1.0),
        ("127 channels, two sequences", (2, 3, 4, 127), mx.bfloat16, mx.bfloat16, 1.0, 1.0),
        ("128 channels", (1, 1, 4, 128), mx.float32, mx.float32, 1.0, 1.0),
        ("129 channels, five rows", (1, 5, 4, 129), mx.float16, mx.float16, 1.0, 1.0),
        ("1,100 channels", (1, 1, 4, 1100), mx.float32, mx.float32, 1.0, 1.0),
        ("no rows", (1, 0, 4, 64), mx.float32, mx.float32, 1.0, 1.0),
        ("all zero", (1, 1, 4, 64), mx.float32, mx.float32, 0.0, 1.0),
        ("subnormal", (1, 1, 4, 64), mx.float32, mx.float32, 1e-39, 1.0),
        ("large streams", (1, 1, 4, 64), mx.float32, mx.float32, 1e15, 1.0),
        ("scores far apart", (1, 2, 4, 64), mx.float32, mx.float32, 1.0, 60.0),
    ]
    return [_case(*one) for one in made]


def _case(
    name: str,
    shape: tuple[int, int, int, int],
    pending: mx.Dtype | None,
    dtype: mx.Dtype,
    size: float,
    spread: float,
) -> Case:
    count, width = shape[2:]
    products = (2 + count) * count
    fn = normal((products, count * width), 4) * spread / (count * width) ** 0.5
    options = {"iterations": 20, "hc_eps": 1e-6, "norm_eps": 1e-6, "dtype": dtype}
    arguments = (
        pending_streams(shape, pending, size),
        fn,
        normal((products,), 5),
        1 + normal((width,), 6) / 4,
    )
    # A rounded input differs by half a step more than the unrounded ones do.
    relative = {mx.float32: 2e-5 if spread > 1 else 1e-5, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    return Case(name, arguments, options, Tolerance(relative))


def pending_streams(shape: tuple[int, int, int, int], pending: mx.Dtype | None, size: float) -> Streams:
    """Streams [B, T, C, D], with an output pending where `pending` is its dtype."""
    batch, rows, count, width = shape
    x = normal(shape, 1) * size
    if pending is None:
        return Streams(x)
    mix = StreamMix(uniform((batch, rows, count), 2), uniform((batch, rows, count, count), 3))
    return Streams(x, (normal((batch, rows, width), 7) * size).astype(pending), mix)


OP = KernelOp("hc_pre", hc_pre, refuses, cases)
