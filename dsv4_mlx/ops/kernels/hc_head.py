"""Kernels of `hc_head`: the first launch of `hc_pre`, then one of its own."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels import hc_pre
from dsv4_mlx.ops.kernels.cases import normal
from dsv4_mlx.ops.kernels.launch import Launch, Launcher, constants, kernel, run, uniforms
from dsv4_mlx.ops.kernels.op import Case, KernelOp
from dsv4_mlx.ops.types import Streams

_INPUTS = ("x", "partial", "base", "weight", "uniforms", "constants")


def hc_head(
    launcher: Launcher,
    x: mx.array,
    fn: mx.array,
    base: mx.array,
    weight: mx.array,
    *,
    hc_eps: float,
    norm_eps: float,
) -> mx.array:
    """As the reference: x [B, T, C, D] -> [B, T, D], all float32."""
    x, partial = hc_pre.mixed(launcher, Streams(x), fn)
    batch, rows, count, width = x.shape
    threads = hc_pre.threads_of(width)
    launch = Launch(
        kernel("hc_head", "hc_head", _INPUTS, ("y",)),
        (x, partial, base, weight, uniforms(partial.shape[-1]), constants(hc_eps, norm_eps)),
        grid=(threads * batch * rows, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=((batch, rows, width),),
        dtypes=(mx.float32,),
        template=(("C", count), ("D", width), ("PER", -(-width // threads))),
    )
    return run(launcher, launch)[0]


def refuses(
    x: mx.array, fn: mx.array, base: mx.array, weight: mx.array, *, hc_eps: float, norm_eps: float
) -> str | None:
    """As `hc_head`: x [B, T, C, D]."""
    return hc_pre.refuses_streams(Streams(x), fn, base, weight)


def cases() -> list[Case]:
    made = [
        ("31 channels", (1, 2, 4, 31), 1.0),
        ("32 channels, one stream", (1, 4, 1, 32), 1.0),
        ("33 channels, two streams", (2, 3, 2, 33), 1.0),
        ("128 channels", (1, 1, 4, 128), 1.0),
        ("no rows", (1, 0, 4, 64), 1.0),
        ("all zero", (1, 2, 4, 64), 0.0),
        ("subnormal", (1, 2, 4, 64), 1e-39),
        ("large", (1, 2, 4, 64), 1e15),
    ]
    return [_case(*one) for one in made]


def _case(name: str, shape: tuple[int, int, int, int], size: float) -> Case:
    count, width = shape[2:]
    x, fn = normal(shape, 1) * size, normal((count, count * width), 2) / (count * width) ** 0.5
    arguments = (x, fn, normal((count,), 3), 1 + normal((width,), 4) / 4)
    return Case(name, arguments, {"hc_eps": 1e-6, "norm_eps": 1e-6})


OP = KernelOp("hc_head", hc_head, refuses, cases)
