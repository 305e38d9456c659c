"""Kernel of `hc_post`: one launch, a thread per channel and row."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.launch import Launch, Launcher, kernel, run
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import StreamMix, Streams

STREAMS = (1, 2, 4)
OUT = (mx.float32, mx.bfloat16, mx.float16)


def hc_post(launcher: Launcher, streams: Streams) -> mx.array:
    """As the reference: x float32 [B, T, C, D], out [B, T, D], mix -> [B, T, C, D]."""
    x, out, mix = streams
    if out is None or mix is None:
        return x
    batch, rows, count, width = x.shape
    launch = Launch(
        kernel("hc_post", "hc_post", ("x", "out", "half_post", "comb"), ("y",)),
        (x, out, mix.half_post, mix.comb),
        grid=(width, batch * rows, 1),
        threadgroup=(min(width, 256), 1, 1),
        shapes=(x.shape,),
        dtypes=(mx.float32,),
        template=(("C", count), ("D", width)),
    )
    return run(launcher, launch)[0]


def refuses(streams: Streams) -> str | None:  # [B, T, C, D]
    x, out, mix = streams
    if out is None or mix is None:
        return None
    if x.dtype != mx.float32 or mix.comb.dtype != mx.float32 or mix.half_post.dtype != mx.float32:
        return f"streams are {x.dtype} and mix {mix.comb.dtype}, expected float32"
    if x.shape[2] not in STREAMS:
        return f"there are {x.shape[2]} streams, expected one of {STREAMS}"
    return None if out.dtype in OUT else f"out is {out.dtype}, expected one of {OUT}"


def cases() -> list[Case]:
    made = [
        (f"{rows} rows, width {width}, {streams} streams", rows, width, streams, mx.float32, 1.0)
        for rows, width, streams in (
            (1, 31, 4),
            (2, 32, 1),
            (3, 33, 2),
            (2, 127, 4),
            (1, 128, 4),
            (5, 129, 4),
        )
    ]
    made += [
        ("no rows", 0, 64, 4, mx.float32, 1.0),
        ("bfloat16 out", 2, 64, 4, mx.bfloat16, 1.0),
        ("float16 out", 2, 64, 4, mx.float16, 1.0),
        ("subnormal streams", 1, 64, 4, mx.float32, 1e-38),
        ("large streams", 1, 64, 4, mx.float32, 1e30),
    ]
    return [
        Case(name, (_streams(rows, width, streams, dtype, size),), tolerance=Tolerance(1e-6))
        for name, rows, width, streams, dtype, size in made
    ]


def _streams(rows: int, width: int, streams: int, dtype: mx.Dtype, size: float) -> Streams:  # [1, T, C, D]
    keys = mx.random.split(mx.random.key(width), 4)
    x = mx.random.normal((1, rows, streams, width), key=keys[0]) * size
    out = (mx.random.normal((1, rows, width), key=keys[1]) * size).astype(dtype)
    mix = StreamMix(
        mx.random.uniform(shape=(1, rows, streams), key=keys[2]),
        mx.random.uniform(shape=(1, rows, streams, streams), key=keys[3]),
    )
    return Streams(x, out, mix)


OP = KernelOp("hc_post", hc_post, refuses, cases)
