"""Several chunks of a prefill go through a layer together: its experts are read once, the cuts stay."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from paging.paged_model import Model
from small_model import token_ids

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.paging.stats import LayerStats, total

LENGTH = 1700  # cuts at 512, 1024, 1536


def opened(model: Model, memory: str, together: int = 1) -> Engine:
    engine = Engine.open(
        model.folder,
        EngineOptions(context=2048, numerics="exact", expert_memory=memory, expert_threads=3),
    )
    if engine.pager is not None:
        engine.model.schedule.chunks_per_step = together  # type: ignore[misc]
    return engine


def prefilled(engine: Engine, tokens: list[int]) -> tuple[Session, list[int], LayerStats]:
    """The session, how far it said it was after each group, and what was read."""
    session = engine.session()
    said = [step.done for step in session.prefill(tokens)]
    return session, said, total(engine.pager.stats()) if engine.pager is not None else LayerStats()


@pytest.fixture(scope="module")
def tokens(model: Model) -> list[int]:
    """No markers: cut at multiples of 512 alone."""
    markers = astuple(opened(model, "100%").prompts.markers)
    return [9 if id in markers else id for id in token_ids(np.random.default_rng(11), LENGTH)]


@pytest.fixture(scope="module")
def whole(model: Model, tokens: list[int]) -> Session:
    return prefilled(opened(model, "100%"), tokens)[0]


@pytest.mark.parametrize(
    ("together", "memory", "said"),
    [(1, "3x", [0, 512, 1024, 1536, 1700]), (2, "3x", [0, 1024, 1700]), (8, "15x", [0, 1700])],
)
def test_logits_and_restart_points_are_the_same(
    model: Model, tokens: list[int], whole: Session, together: int, memory: str, said: list[int]
) -> None:
    session, heard, _ = prefilled(opened(model, memory, together), tokens)
    assert heard == said
    assert np.array_equal(session.logits, whole.logits)
    for shared in (1600, 1100, 600):  # goes back to 1536, 1024, 512, two of which lie inside a group
        other = [*tokens[:shared], *tokens[:40]]
        alone = whole.fork()
        assert np.array_equal(session.sync(other), alone.sync(other))
        assert session.cached == alone.cached == shared // 512 * 512
        assert np.array_equal(session.sync([*other, 9]), alone.sync([*other, 9]))


def test_experts_are_read_once_for_chunks_together(model: Model, tokens: list[int]) -> None:
    read = {n: prefilled(opened(model, "5x", n), tokens)[2].bytes for n in (1, 4)}
    assert read[4] < 0.4 * read[1]


def test_small_models_take_as_many_chunks_as_allowed(model: Model) -> None:
    engine = Engine.open(model.folder, EngineOptions(context=512, expert_memory="5x"))
    assert engine.model.schedule.chunks_per_step == 8


class Enough(Exception):
    """Whoever waits has left."""


@pytest.mark.parametrize(
    "moment", [1, 9, *(pytest.param(moment, marks=pytest.mark.long) for moment in (4, 12))]
)
def test_left_between_layers(model: Model, tokens: list[int], moment: int) -> None:
    """The session is where the step began: what it knew is kept, and what follows has the same bits."""
    engine = opened(model, "5x", 4)
    session, calm = engine.session(), opened(model, "100%").session()
    known, asked = tokens[:520], [*tokens[:520], *tokens[:1400]]
    session.sync(known)
    calm.sync(known)
    here = session.snapshot()
    session.sync(tokens[:600])
    further = session.snapshot()
    session.restore(here)
    assert session.holds(further)
    passed = 0

    def between() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            raise Enough

    with pytest.raises(Enough):
        list(session.prefill(asked, check_cancelled=between))
    assert session.tokens == known
    assert not session.holds(further), "the pass that was left may have written over its rows"
    assert np.array_equal(session.sync(asked), calm.sync(asked))
    assert session.cached == len(known)
