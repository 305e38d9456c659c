"""A replayed step is the step: the same bits at every position, in whatever a session does around it."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from small_model import MARKERS, tiny_model

from dsv4_mlx.engine.session import Session
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.step import HELD
from dsv4_mlx.model.transformer import Transformer

NO_FUSE, ENABLED = 2, 3  # mlx::core::CompileMode
GROWTH = 256


@pytest.fixture(scope="module", autouse=True)
def unfused() -> Iterator[None]:
    """As on Metal, where kernels leave nothing to fuse; here fusing takes a C++ compiler half a minute."""
    library = ctypes.CDLL(str(next(Path(mx.__file__).parent.glob("lib/libmlx.*"))))
    mode = library._ZN3mlx4core16set_compile_modeENS0_11CompileModeE
    mode(ctypes.c_int(NO_FUSE))
    yield
    mode(ctypes.c_int(ENABLED))


def model() -> Transformer:
    found = tiny_model()
    found.replays = True
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[Transformer, Transformer]:
    """One that builds every step, one that replays it: the same weights."""
    return tiny_model(), model()


def session(one: Transformer) -> Session:
    return Session(one, 4096, MARKERS, GROWTH)


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(8, 384, count)]


def bits(one: Session) -> list[np.ndarray]:
    """Logits and every buffer up to its last row that means something."""
    arrays = [np.array(array) for array in one._state.arrays()]
    return [np.array(one.logits), *arrays]


def same(plain: Session, replayed: Session) -> bool:
    assert plain.tokens == replayed.tokens
    pairs = zip(bits(plain), bits(replayed), strict=True)
    return all(np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in pairs)


def test_every_residue_and_the_edge_of_a_capacity(pair: tuple[Transformer, Transformer]) -> None:
    """From the first token: all residues mod 4 and 128, the ring's end, the first scored row, a growth."""
    plain, replayed = (session(one) for one in pair)
    for at, token in enumerate(tokens(270)):
        found, expected = replayed.advance(token), plain.advance(token)
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), f"position {at}"
    assert same(plain, replayed) and replayed.capacity == 2 * GROWTH
    assert pair[1].compiled.made == 3 * 2 + 3  # unscored and scored of one capacity, scored of the next


@pytest.mark.parametrize("length", [5, 126, 131, 255])
def test_take_back_restore_and_fork(pair: tuple[Transformer, Transformer], length: int) -> None:
    made = []
    for one in pair:
        start = session(one)
        start.sync(tokens(length))
        for token in tokens(6, 1):
            start.advance(token)
        start.take_back(5)
        start.advance(9)
        point, twin = start.snapshot(), start.fork()
        for token in tokens(4, 2):
            start.advance(token)
        start.restore(point)
        for token in tokens(5, 3):
            start.advance(token)
            twin.advance(token + 1 if token < 383 else 8)
        made.append((start, twin))
    assert all(same(*both) for both in zip(*made, strict=True))


def test_an_exception_inside_a_trace_leaves_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model()
    state = one.new_state(growth=GROWTH)
    mx.eval(one(mx.array([tokens(30)]), state, last=True), state.arrays())
    before = [np.array(a) for a in state.arrays()]

    def fails(*_: Any) -> mx.array:
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patched:
        patched.setattr(type(one.head), "__call__", fails)
        with pytest.raises(RuntimeError, match="no such kernel"):
            one.step(mx.array([[9]]), state)
    assert state.length == 30
    assert all(np.array_equal(np.array(a), b) for a, b in zip(state.arrays(), before, strict=True))
    plain = one(mx.array([[9]]), state.fork(), last=True)
    assert mx.array_equal(one.step(mx.array([[9]]), state), plain).item()


def test_new_ops_are_new_traces() -> None:
    one = model()
    state = one.new_state(growth=GROWTH)
    mx.eval(one(mx.array([tokens(30)]), state, last=True), state.arrays())
    mx.eval(one.step(mx.array([[9]]), state))
    assert one.compiled.made == 3
    one.ops = replace(one.ops, hc_post=lambda streams: 2 * tiny_model().ops.hc_post(streams))
    mx.eval(one.step(mx.array([[9]]), state))
    assert one.compiled.made == 6


def test_buffers_stay_where_they_are_and_memory_does_not_grow() -> None:
    one = model()
    state = one.new_state(growth=512)
    mx.eval(one(mx.array([tokens(30)]), state, last=True), state.arrays())

    def go(count: int) -> None:
        for token in tokens(count):
            mx.eval(one.step(mx.array([[token]]), state), state.arrays())

    def addresses() -> list[int]:
        return [np.array(a, copy=False).ctypes.data for a in state.arrays()]

    go(40)
    before, memory = addresses(), mx.get_active_memory()
    go(400)
    assert addresses() == before
    assert mx.get_active_memory() <= memory * 1.01


def test_traces_are_few_and_end_with_their_model() -> None:
    one = model()
    for growth in (128, 256, 384, 512):
        state = one.new_state(growth=growth)
        mx.eval(one(mx.array([tokens(30)]), state, last=True), state.arrays())
        mx.eval(one.step(mx.array([[9]]), state), state.arrays())
        assert len(one.compiled._traces) <= HELD
    gone = weakref.ref(one.head)
    del one, state
    assert gone() is None or (gc.collect() and gone() is None)


def test_a_lazy_token_is_a_token(pair: tuple[Transformer, Transformer]) -> None:
    def states() -> list[ModelState]:
        found = [one.new_state(growth=GROWTH) for one in pair]
        for one, state in zip(pair, found, strict=True):
            mx.eval(one(mx.array([tokens(30)]), state, last=True), state.arrays())
        return found

    plain, replayed = states()
    expected = pair[0](mx.array([[7]]), plain, last=True)
    chosen = mx.argmax(mx.arange(8)).reshape(1, 1).astype(mx.int32)
    assert mx.array_equal(pair[1].step(chosen, replayed), expected).item()
