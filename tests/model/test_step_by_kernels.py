"""Rows that a buffer has room for and does not hold yet change no bit of what is computed from it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.kernels.proven import Proven
from small_model import tiny_model

from dsv4_mlx.model.step import StepNumbers
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels import attend, index_select
from dsv4_mlx.ops.table import REFERENCE, Ops, with_kernels
from dsv4_mlx.ops.types import AttendedRows

OPS = pytest.mark.parametrize(
    "ops", [REFERENCE, with_kernels(Proven(check=False))], ids=["reference", "kernel"]
)


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def bits(array: mx.array) -> np.ndarray:
    return np.array(array).view(np.uint32)


def number(value: int) -> mx.array:
    return mx.array([value], mx.uint32)


def wider(rows: mx.array, places: int) -> mx.array:
    """[1, N, K] -> [1, places, K]: what stands there is no row."""
    rest = mx.full((1, places - rows.shape[1], rows.shape[2]), 1e4)
    return mx.concatenate([rows, rest], axis=1)


@OPS
@pytest.mark.parametrize("recent,far", [(1, 0), (40, 5), (48, 81), (48, 300)])
def test_attention(ops: Ops, recent: int, far: int) -> None:
    """One split and several, of a window and of compressed rows; a mask hides what the ring has spare."""
    q, sinks, table = normal(1, 1, 8, 64), mx.zeros(8), mx.ones((1, 32), mx.complex64)
    window, rows = normal(1, recent, 64), normal(1, far, 64)
    compressed = AttendedRows(rows, None) if far else None
    expected = ops.attend(q, AttendedRows(window, None), compressed, sinks, table)
    mask = mx.where(mx.arange(48) < recent, 0.0, -mx.inf)[None]
    found = ops.attend(
        q, AttendedRows(wider(window, 48) if recent < 48 else window, mask, filled=number(recent)),
        AttendedRows(wider(rows, 700), None, filled=number(far)), sinks, table,
    )  # fmt: skip
    assert np.array_equal(bits(found), bits(expected))


@OPS
@pytest.mark.parametrize("rows", [20, 33, 500])
def test_chosen_rows(ops: Ops, rows: int) -> None:
    q, weights, keys = normal(1, 1, 8, 32), normal(1, 1, 8), normal(1, rows, 32)
    expected = ops.index_select(q, weights, keys, None, 20)
    found = ops.index_select(q, weights, wider(keys, 640), None, 20, number(rows))
    assert np.array_equal(np.array(found), np.array(expected))


def test_every_access_is_sound() -> None:
    """Nothing is read that nobody wrote, though splits without rows write nothing: the emulator looks."""
    machine = Proven(schedules=1)
    q, sinks, table = normal(1, 1, 8, 64), mx.zeros(8), mx.ones((1, 32), mx.complex64)
    window = AttendedRows(normal(1, 40, 64), None, filled=number(30))
    attend.attend(machine, q, window, AttendedRows(normal(1, 400, 64), None, filled=number(99)), sinks, table)
    keys = normal(1, 640, 32)
    index_select.index_select(machine, normal(1, 1, 8, 32), normal(1, 1, 8), keys, None, 20, number(33))
    assert machine.ran == {"attend", "attend_join", "index_select_scores", "index_select_best"}


def kernels_model() -> Transformer:
    return tiny_model(ops=with_kernels(Proven(check=False, remember=False)))


@pytest.mark.parametrize("length", [pytest.param(28, marks=pytest.mark.long), 120])
def test_a_step_by_kernels_is_the_plain_one(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that is traced, run as it is, for the emulator has no lazy arrays. Over the first rows
    that are scored, and rows of both kinds that close."""
    monkeypatch.setattr(StepNumbers, "beside", lambda self: [])  # tracing ahead would compute nonsense here
    one = kernels_model()
    plain, stepped = one.new_state(growth=256), one.new_state(growth=256)
    prompt = mx.array(np.random.default_rng(0).integers(8, 384, (1, length)), mx.int32)
    for state in (plain, stepped):
        mx.eval(one(prompt, state, last=True), state.arrays())
    mx.disable_compile()
    try:
        one.replays = True
        for token in range(30, 42):
            found = one.step(mx.array([[token]]), stepped)
            one.replays = False
            expected = one.step(mx.array([[token]]), plain)
            one.replays = True
            assert np.array_equal(bits(found), bits(expected)), token
    finally:
        mx.enable_compile()
    pairs = zip(plain.arrays(), stepped.arrays(), strict=True)
    assert all(np.array_equal(bits(a), bits(b)) for a, b in pairs)
