"""A kernel whose launch raises in the middle of an answer: found, replaced, the token computed again."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from model.test_step import unfused
from ops.selftest.scripted import sound
from small_model import MARKERS, new_session, tiny_model, token_ids

from dsv4_mlx.engine import session_file
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.engine.session import Session
from dsv4_mlx.errors import Dsv4Warning
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.table import REFERENCE, with_kernels

__all__ = ["unfused"]  # a fixture, used by being here

KERNEL = "hc_post"  # launched once a step
PROMPT = token_ids(np.random.default_rng(5), 600)
STEPS = 6


class Failing:
    """A launcher of which one kernel raises at its `at`-th launch, and then `times` - 1 times more."""

    def __init__(self, at: int, times: int, error: type[Exception] = RuntimeError) -> None:
        self.count, self.failures = 0, range(at, at + times)
        self.error = error

    def __call__(self, launch: Launch) -> Sequence[mx.array]:
        if launch.kernel.name == KERNEL:
            self.count += 1
            if self.count in self.failures:
                raise self.error("[metal::Device] Unable to load kernel\nmore")
        return sound(launch)


def model_with(launcher: Failing) -> Transformer:
    """One kernel, for speed: the others are references."""
    return tiny_model(ops=with_kernels(launcher, {op.name for op in ALL} - {KERNEL}))


def greedy(session: Session) -> list[int]:
    """An answer, token by token."""
    said = [int(session.sync(PROMPT).argmax())]
    for _ in range(STEPS):
        said.append(int(session.advance(said[-1]).argmax()))
    return said


@pytest.fixture(scope="module")
def expected() -> list[int]:
    return greedy(new_session(tiny_model()))


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_kernel_that_fails_is_replaced(at: int, expected: list[int]) -> None:
    """In a prefill (of two chunks) and in a decode step: one warning, the references' answer."""
    launcher = Failing(at, 10_000)
    model = model_with(launcher)
    session = new_session(model)
    with pytest.warns(Dsv4Warning) as caught:
        assert greedy(session) == expected
    (said,) = [str(one.message) for one in caught]
    assert (
        KERNEL in said and "Unable to load kernel" in said and "computed again" in said and "\n" not in said
    )
    assert model.ops.hc_post is REFERENCE.hc_post
    assert session.tokens == [*PROMPT, *expected[:-1]]
    assert not session.pure
    assert session_file.point_to_save(session, session.tokens) == 0
    assert session.cached_prefix(session.tokens) == 0
    count, after = launcher.count, new_session(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert greedy(after) == expected
    assert launcher.count == count and after.pure
    assert session_file.point_to_save(after, after.tokens) == 512


@pytest.mark.parametrize(("at", "error"), [(1, RuntimeError), (2, ValueError), (4, RuntimeError)])
def test_a_kernel_that_failed_once_is_kept(at: int, error: type[Exception], expected: list[int]) -> None:
    model = model_with(Failing(at, 1, error))
    ops, session = model.ops, new_session(model)
    with pytest.warns(Dsv4Warning, match="no kernel is to blame") as caught:
        assert greedy(session) == expected
    assert len(caught) == 1
    assert model.ops is ops
    assert session.pure and session.cached_prefix(session.tokens) == len(session.tokens)


def test_other_sessions_go_on_and_are_not_shared(expected: list[int]) -> None:
    """What they know was computed by the kernel, what comes next will not be."""
    model = model_with(Failing(4, 10_000))
    early, late = new_session(model), new_session(model)
    early.sync(PROMPT)
    assert early.pure
    with pytest.warns(Dsv4Warning):
        assert greedy(late) == expected
    assert not early.pure and early.cached_prefix([*PROMPT, 1]) == 0
    assert int(early.advance(expected[0]).argmax()) == expected[1]
    assert not early.pure and not early.fork().pure
    early.sync(PROMPT[:40])  # from nothing
    assert early.pure


def test_what_no_kernel_did_is_an_error_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without kernels; and memory that is out however often one asks."""

    def full(*arrays: object) -> None:
        raise RuntimeError("[malloc] out of memory")

    for model in (tiny_model(), model_with(Failing(1, 0))):
        session, ops = new_session(model), model.ops
        monkeypatch.setattr(mx, "eval", full)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.sync(PROMPT[:20])
        assert session.tokens == [] and model.ops is ops
        monkeypatch.undo()
        session.sync(PROMPT[:20])


def test_leaving_a_prefill_is_no_failure() -> None:
    """Whatever kind of error it is left with."""
    launcher = Failing(1, 0)
    session = new_session(model_with(launcher))

    def leave() -> None:
        raise ValueError("cancelled")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.sync(PROMPT[:40])
        with pytest.raises(ValueError, match="cancelled"):
            list(session.prefill(PROMPT, check_cancelled=leave))
    assert session.tokens == PROMPT[:40] and session.pure


def failing_wait(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Metal tells of a launch that failed where its result is waited for: at the `at`-th step from now on."""
    waits, wait = itertools.count(1), mx.eval

    def failing(*arrays: Any) -> None:
        of_a_step = len(arrays) == 2 and len(arrays[1]) == 1  # as Session waits: what is beside, the check
        if of_a_step and next(waits) == at:
            for beside in arrays[0]:
                beside[...] = 3  # what is made of a row that was not computed is no token
            raise RuntimeError("[METAL] Command buffer execution failed")
        wait(*arrays)

    monkeypatch.setattr(mx, "eval", failing)


def test_a_failure_shows_where_a_step_is_waited_for(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session(model_with(Failing(1, 0)))
    session.sync(PROMPT)
    row = session.feed(expected[0])
    failing_wait(monkeypatch, 1)
    with pytest.warns(Dsv4Warning, match="no kernel is to blame"):
        assert session.settle(mx.argmax(row)), "what was made of the row is of no use"
    assert int(mx.argmax(session.row)) == expected[1] and session.tokens == [*PROMPT, expected[0]]
    assert not session.settle() and session.pure


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_an_answer_goes_on_whichever_wait_fails(
    at: int, ahead: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is drawn again from the row that was computed again, and a step that was built on it is not
    taken. `ahead`: references stand for the kernels, which nothing here can replay.
    """
    model = model_with(Failing(1, 0))
    if ahead:
        model = tiny_model(ops=replace(REFERENCE, launcher=sound))
        model.replays = True
    session = new_session(model)
    session.sync(PROMPT)
    failing_wait(monkeypatch, at)
    options = SamplingOptions(temperature=0, logit_bias={MARKERS.end: -900.0})
    with pytest.warns(Dsv4Warning, match="computed again") as caught:
        said = list(generate(session, PROMPT, options, max_tokens=STEPS + 1))
    assert said == expected and len(caught) == 1
    assert (model.compiled.made > 0) == ahead


def test_a_wait_that_always_fails_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    session = new_session(model_with(Failing(1, 0)))
    session.sync(PROMPT[:40])
    session.feed(9)

    def full(*arrays: object) -> None:
        raise RuntimeError("[malloc] out of memory")

    monkeypatch.setattr(mx, "eval", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.settle()
    assert session.tokens == []
