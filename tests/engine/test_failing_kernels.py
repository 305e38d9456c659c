"""A kernel whose launch raises in the middle of an answer: found, replaced, the token computed again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from ops.selftest.scripted import sound
from small_model import new_session, tiny_model, token_ids

from dsv4_mlx.engine import session_file
from dsv4_mlx.engine.session import Session
from dsv4_mlx.errors import Dsv4Warning
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.table import REFERENCE, with_kernels

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
