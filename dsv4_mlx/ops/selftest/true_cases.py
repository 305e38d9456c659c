"""The calls that a model of a given shape makes of every kernel: each of its pipelines at least once.

A pipeline is what Metal compiles: a kernel's text, its template, its inputs' dtypes, and which of them have
fewer than 8 numbers. tests/ops/kernels/test_pipelines.py traces the true model and holds these against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from dsv4_mlx.config import CSA, HCA, LayerKind
from dsv4_mlx.ops.kernels.cases import FORMATS, rope_table
from dsv4_mlx.ops.kernels.expert_ffn import ROOM
from dsv4_mlx.ops.kernels.op import Case, Tolerance
from dsv4_mlx.ops.selftest.model_shape import ModelShape
from dsv4_mlx.ops.types import AttendedRows, Bank, Rounding, StreamMix, Streams

MANY = 17  # rows: one more than what kernels take row by row
_EXPERT = Tolerance(2**-8)  # hidden values are rounded to 16 bits
_EPS = 1e-6


@dataclass(frozen=True)
class TrueCases:
    """Of one kernel. `compared` with its reference; `timed` against it, at the sizes of a step."""

    compared: list[Case]
    timed: list[Case]


def true_cases(name: str, shape: ModelShape) -> TrueCases:
    """Of the kernel `name`."""
    return _CASES[name](shape)


def _hc_pre(s: ModelShape) -> TrueCases:
    def case(rows: int, pending: mx.Dtype | None) -> Case:
        fn, base, norm = _mixes(s, (2 + s.streams) * s.streams)
        options = {"iterations": s.iterations, "hc_eps": _EPS, "norm_eps": _EPS, "dtype": s.activations}
        given = (_streams(s, rows, pending), fn, base, norm)
        return Case(f"{_rows(rows)}, {pending or 'nothing'} pending", given, options, Tolerance(2e-5))

    kinds = (None, s.activations, mx.float32)
    return TrueCases(
        [case(rows, kind) for rows in (1, 2) for kind in kinds],
        [case(rows, s.activations) for rows in (1, s.chunk)],
    )


def _hc_post(s: ModelShape) -> TrueCases:
    def case(rows: int) -> Case:
        return Case(_rows(rows), (_streams(s, rows, mx.float32),))

    return TrueCases([case(1), case(2)], [case(1), case(s.chunk)])


def _hc_head(s: ModelShape) -> TrueCases:
    def case(rows: int) -> Case:
        given = (_streams(s, rows, None).x, *_mixes(s, s.streams))
        return Case(_rows(rows), given, {"hc_eps": _EPS, "norm_eps": _EPS})

    return TrueCases([case(1), case(2)], [case(1)])


def _latents(s: ModelShape) -> TrueCases:
    def case(rows: int, rounding: Rounding) -> Case:
        low = _normal((1, rows, s.q_rank + s.head_dim), 1).astype(s.activations)
        q_norm, kv_norm = _near_one(s.q_rank, 2).astype(s.activations), _near_one(s.head_dim, 3)
        given = (low, q_norm, kv_norm, _table(s, rows))
        return Case(
            f"{_rows(rows)}, {rounding.kind}", given, {"eps": _EPS, "rounding": rounding}, _coded(rounding)
        )

    official, exact = s.row_roundings()
    return TrueCases([case(2, official), case(2, exact)], [case(1, official), case(s.chunk, official)])


def _query_heads(s: ModelShape) -> TrueCases:
    def case(rows: int, heads: int, width: int, eps: float | None, rounding: Rounding) -> Case:
        given = (_normal((1, rows, heads * width), 1).astype(s.activations), _table(s, rows))
        options = {"heads": heads, "eps": eps, "rounding": rounding}
        return Case(
            f"{_rows(rows)}, {heads} heads of {width}, {rounding.kind}", given, options, _coded(rounding)
        )

    index = [case(2, s.index_heads, s.index_dim, None, rounding) for rounding in s.index_roundings()]
    main = [case(rows, s.heads, s.head_dim, _EPS, Rounding()) for rows in (1, s.chunk)]
    return TrueCases([*main[:1], *index], main)


def _project(s: ModelShape) -> TrueCases:
    def case(columns: int, period: int) -> Case:
        given: tuple[Any, ...] = _normal((1, 1, s.hidden), 1), _weight(s, columns)
        if period:
            given = (*given, _normal((period, columns), 3), 1)
        return Case(f"{columns} columns", given)

    made = [
        case(s.group(CSA), CSA.ratio),
        case(s.group(HCA), HCA.ratio),
        case(s.experts, 0),
        case(s.index_heads, 0),
    ]
    return TrueCases(made, made[:1])


def _compress(s: ModelShape) -> TrueCases:
    def case(kind: LayerKind, at: int, width: int, rounding: Rounding) -> Case:
        options = {
            "ratio": kind.ratio, "at": at, "overlap": kind.indexed, "first": False, "eps": _EPS,
            "rounding": rounding, "dtype": s.activations,
        }  # fmt: skip
        ring = _normal((1, kind.ratio * kind.halves + 8, s.group(kind)), 1)
        given = (ring, 3, _near_one(width, 7), _table(s, 1))
        return Case(
            f"groups of {kind.ratio}, {width} channels, {rounding.kind}", given, options, _coded(rounding)
        )

    rows = [case(kind, 0, s.head_dim, how) for kind in (CSA, HCA) for how in s.row_roundings()]
    index = [case(CSA, 4 * s.head_dim, s.index_dim, how) for how in s.index_roundings()]
    return TrueCases([*rows, *index], [rows[0], rows[2]])


def _index_select(s: ModelShape) -> TrueCases:
    def case(rows: int, keys: int, masked: bool) -> Case:
        # Quarters and eighths, of which sums are exact: the best are the same whatever the order.
        q = mx.round(_normal((1, rows, s.index_heads, s.index_dim), 1) * 4) / 4
        weights = mx.round(_normal((1, rows, s.index_heads), 2) * 8) / 8
        stored = (mx.round(_normal((1, keys, s.index_dim), 3) * 4) / 4).astype(s.activations)
        given = (q, weights, stored, _causal(rows, keys, keys - 8) if masked else None, s.index_topk)
        return Case(f"{_rows(rows)}, {keys} keys", given, tolerance=Tolerance(any_order=True))

    few = s.index_topk + 40
    return TrueCases(
        [case(1, few, False), case(2, few, True)],
        [case(1, 4 * s.seen, False), case(s.chunk, 2 * s.seen, True)],
    )


def _attend(s: ModelShape) -> TrueCases:
    def case(
        rows: int, recent: int, seen: bool, kind: str = "", count: int = 0, masked: bool = False
    ) -> Case:
        window = AttendedRows(
            _bounded((1, recent, s.head_dim), 2, s),
            _causal(rows, recent, recent - rows + 1) if seen else None,
        )
        compressed = None
        if kind:
            least = count if kind == "indexed" else max(1, count - rows + 1)
            mask = _causal(rows, count, least) if masked else None
            stored = _bounded((1, count + 40 if kind == "indexed" else count, s.head_dim), 3, s)
            indices = _distinct(rows, count, count + 40) if kind == "indexed" else None
            if indices is not None and mask is not None:
                mask = mask[None]
            compressed = AttendedRows(stored, mask, indices)
        q = _normal((1, rows, s.heads, s.head_dim), 1) * s.head_dim**-0.5
        given = (q, window, compressed, _normal((s.heads,), 4), mx.conj(_table(s, rows)))
        name = f"{_rows(rows)}, {recent} in the window, {count} {kind or 'compressed'}"
        return Case(name, given, tolerance=Tolerance(2e-5))

    ring, best = s.window + 8, s.index_topk
    made = [
        case(1, 5, False), case(1, 5, False, "all", 1), case(1, ring, True), case(1, ring, True, "all", 32),
        case(1, ring, True, "indexed", best), case(2, 2, True), case(2, 6, True),
        case(5, ring, True, "all", 1, True), case(9, ring, True, "all", 2, True),
        case(10, ring, True, "indexed", best, True), case(MANY, MANY, True),
        case(MANY, s.window, True, "all", 4, True), case(MANY, s.window, True, "indexed", best, True),
    ]  # fmt: skip
    timed = [
        case(1, ring, True, "indexed", best), case(1, ring, True, "all", 8 * s.seen),
        case(s.chunk, s.chunk + s.window - 1, True, "indexed", best, True),
    ]  # fmt: skip
    return TrueCases(made, timed)


def _group_project(s: ModelShape) -> TrueCases:
    bank = _bank(s, s.o_groups, s.o_rank, s.heads * s.head_dim // s.o_groups, s.linear)

    def case(rows: int) -> Case:
        return Case(_rows(rows), (_bounded((1, rows, s.heads, s.head_dim), 1, s), bank))

    return TrueCases([case(1), case(MANY)], [case(1), case(s.chunk)])


def _route(s: ModelShape) -> TrueCases:
    def case(rows: int) -> Case:
        given = (_short((1, rows, s.hidden), 1), _weight(s, s.experts), _normal((s.experts,), 3))
        return Case(_rows(rows), given, {"count": s.chosen, "scale": 1.5})

    return TrueCases([case(1), case(MANY)], [case(1)])


def _route_hashed(s: ModelShape) -> TrueCases:
    def case(rows: int) -> Case:
        given = (_short((1, rows, s.hidden), 1), _weight(s, s.experts), _ids(s, rows, s.chosen, mx.int32))
        return Case(_rows(rows), given, {"scale": 1.5})

    return TrueCases([case(1), case(2), case(MANY)], [case(1)])


def _shared_ffn(s: ModelShape) -> TrueCases:
    single = [_single(bank) for bank in _banks(s, 1, s.linear)]

    def case(rows: int) -> Case:
        return Case(_rows(rows), (_bounded((1, rows, s.hidden), 1, s), *single, 10.0), tolerance=_EXPERT)

    return TrueCases([case(1), case(8), case(MANY)], [case(1), case(s.chunk)])


def _expert_ffn(s: ModelShape) -> TrueCases:
    """Routed ones; then a part of a chunk's pairs, as paged experts are computed."""
    few = _banks(s, min(8, s.experts), s.expert)
    all_of_them = tuple(_overlapping(bank, s.experts) for bank in few)

    def case(rows: int, chosen: int, kind: mx.Dtype, chunk: int | None = None, banks: Any = few) -> Case:
        ids = _ids(s, rows, chosen, kind)
        given = (_bounded((1, rows, s.hidden), 1, s), ids, _uniform(ids.shape, 5), *banks, 10.0)
        start = None if chunk else _normal((1, rows, s.hidden), 6)
        name = f"{_rows(rows)}, {ids.size} pairs, {kind}" + (f", of {chunk}" if chunk else "")
        return Case(name, (*given, start), {"chunk": chunk or rows}, _EXPERT)

    kinds = (mx.uint32, mx.int32)
    whole = [case(n, s.chosen, kind) for n in (1, 2) for kind in kinds]
    whole += [case(MANY, s.chosen, kind, None, all_of_them) for kind in kinds]
    sizes = (few, all_of_them) if s.experts > ROOM else (few,)
    parts = [case(n, 1, mx.uint32, chunk, banks) for n in (1, 8) for chunk in (2, s.chunk) for banks in sizes]
    return TrueCases([*whole, *parts], [case(1, s.chosen, mx.uint32), case(s.chunk, s.chosen, mx.uint32)])


_CASES: dict[str, Callable[[ModelShape], TrueCases]] = {
    "hc_pre": _hc_pre, "hc_post": _hc_post, "hc_head": _hc_head, "latents": _latents,
    "query_heads": _query_heads, "project": _project, "compress": _compress, "index_select": _index_select,
    "attend": _attend, "group_project": _group_project, "route": _route, "route_hashed": _route_hashed,
    "shared_ffn": _shared_ffn, "expert_ffn": _expert_ffn,
}  # fmt: skip


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"


def _coded(rounding: Rounding) -> Tolerance:
    """A value on an edge of a code may go either way: by one step."""
    return Tolerance(1e-5, 0.02, {"none": 0.0, "q8": 0.13, "q4": 0.5}[rounding.kind])


def _normal(shape: tuple[int, ...], seed: int) -> mx.array:
    """float32 [shape], made where it is used first: what is only traced costs nothing."""
    made: mx.array = mx.random.normal(shape, key=mx.random.key(seed))
    return made


def _uniform(shape: tuple[int, ...], seed: int) -> mx.array:  # float32 [shape]
    made: mx.array = mx.random.uniform(shape=shape, key=mx.random.key(seed))
    return made


def _near_one(width: int, seed: int) -> mx.array:  # [D]
    return 1 + _normal((width,), seed) / 4


def _bounded(shape: tuple[int, ...], seed: int, s: ModelShape) -> mx.array:  # [...] as activations
    made: mx.array = _normal(shape, seed).astype(s.activations)
    return made


def _short(shape: tuple[int, ...], seed: int) -> mx.array:
    """float32 [shape] with few bits: a product of many rows, which is MLX's own, loses none to TF32."""
    return _normal(shape, seed).astype(mx.bfloat16).astype(mx.float32)


def _weight(s: ModelShape, columns: int) -> mx.array:  # [W, D]
    made: mx.array = (_normal((columns, s.hidden), 2) * s.hidden**-0.5).astype(mx.bfloat16)
    return made


def _table(s: ModelShape, rows: int) -> mx.array:
    """As the model's: as wide as a head, the first channels not rotated; complex64 [rows, K / 2]."""
    return rope_table(rows, s.head_dim, (s.head_dim - s.rope_dim) // 2)


def _mixes(s: ModelShape, count: int) -> tuple[mx.array, mx.array, mx.array]:
    """fn [M, C * D], base [M], norm [D]."""
    width = s.streams * s.hidden
    return _normal((count, width), 4) * width**-0.5, _normal((count,), 5), _near_one(s.hidden, 6)


def _streams(s: ModelShape, rows: int, pending: mx.Dtype | None) -> Streams:  # [1, T, C, D]
    x = _normal((1, rows, s.streams, s.hidden), 1)
    if pending is None:
        return Streams(x)
    mix = StreamMix(_uniform((1, rows, s.streams), 2), _uniform((1, rows, s.streams, s.streams), 3))
    return Streams(x, _normal((1, rows, s.hidden), 7).astype(pending), mix)


def _causal(rows: int, count: int, first: int) -> mx.array:
    """float32 [T, N]: row t sees the first `first` + t."""
    seen = np.arange(count) < first + np.arange(rows)[:, None]
    return mx.array(np.where(seen, 0.0, -np.inf).astype(np.float32))


def _distinct(rows: int, count: int, of: int) -> mx.array:
    """uint32 [1, T, J]: `count` different numbers below `of`, ascending."""
    rng = np.random.default_rng(of)
    chosen = [np.sort(rng.permutation(of)[:count]) for _ in range(rows)]
    return mx.array(np.stack(chosen).astype(np.uint32))[None]


def _ids(s: ModelShape, rows: int, chosen: int, kind: mx.Dtype) -> mx.array:
    """[1, T, A] below what `_banks` holds: different ones for a token as long as there are enough."""
    count = min(8, s.experts)
    ids = (np.arange(rows)[:, None] * 3 + np.arange(chosen)) % count
    return mx.array(ids.astype(np.uint32)).astype(kind)[None]


def _banks(s: ModelShape, count: int, name: str) -> tuple[Bank, Bank]:
    """gate|up [E, 2 I, D] and down [E, D, I]."""
    return (
        _bank(s, count, 2 * s.expert_width, s.hidden, name),
        _bank(s, count, s.hidden, s.expert_width, name),
    )


def _bank(s: ModelShape, count: int, rows: int, columns: int, name: str) -> Bank:  # [E, out, in]
    """Random codes; scales by which a row times normal numbers is of the size of one."""
    mode, bits, group = FORMATS[name]
    keys = mx.random.split(mx.random.key(rows), 2)
    codes = mx.random.randint(0, 256, (count, rows, columns * bits // 8), mx.uint8, keys[0])
    scales, size = (count, rows, columns // group), round(-math.log2(columns) / 2)
    if mode == "affine":
        scale = (2.0 ** (size - bits) * (1 + mx.random.uniform(shape=scales, key=keys[1]))).astype(
            s.activations
        )
        return Bank(codes.view(mx.uint32), scale, -(2.0 ** (bits - 1)) * scale, mode, bits, group)
    if mode == "mxfp8":
        codes = codes & 0xBF  # below 2, so that none is NaN
    exponent = 127 + size - (mode == "mxfp4")
    spread = mx.random.randint(exponent - 1, exponent + 1, scales, mx.uint8, keys[1])
    return Bank(codes.view(mx.uint32), spread, None, mode, bits, group)


def _overlapping(bank: Bank, count: int) -> Bank:  # [E, out, in]
    """`count` matrices in the memory of a few: each begins some rows after the one before."""
    held, rows, _ = bank.codes.shape
    step = max(1, (held - 1) * rows // max(1, count - 1))

    def spread(array: mx.array) -> mx.array:  # [E, out, in]
        columns = array.shape[2]
        return mx.as_strided(array.reshape(-1), (count, rows, columns), (step * columns, columns, 1), 0)

    if count <= held:
        return bank
    return bank._replace(
        codes=spread(bank.codes),
        scales=None if bank.scales is None else spread(bank.scales),
        biases=None if bank.biases is None else spread(bank.biases),
    )


def _single(bank: Bank) -> Bank:
    """The matrix [out, in] of a bank of one."""
    scales, biases = bank.scales, bank.biases
    return bank._replace(
        codes=bank.codes[0],
        scales=None if scales is None else scales[0],
        biases=None if biases is None else biases[0],
    )
