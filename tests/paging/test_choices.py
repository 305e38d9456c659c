"""The pure parts that choose: the strategy of a step, whether advice is worth a read, how many threads."""

from __future__ import annotations

import time

from paging.paged_model import Model

from dsv4_mlx.paging.pager import CANDIDATES
from dsv4_mlx.paging.predictor import Trust
from dsv4_mlx.paging.schedule import StrategySwitch
from dsv4_mlx.weights.records import RecordMap


def test_the_form_follows_the_misses_with_hysteresis() -> None:
    strategy = StrategySwitch()
    assert not strategy.optimistic
    for _ in range(40):
        strategy.learn(0)
    assert strategy.optimistic
    strategy.learn(3)  # one bad token is no reason to change
    assert strategy.optimistic
    for _ in range(20):
        strategy.learn(2)
    assert not strategy.optimistic
    while strategy.lacking > 0.5:
        strategy.learn(0)
    assert not strategy.optimistic  # between the two thresholds it stays what it is


def test_advice_that_is_wrong_is_not_followed_until_it_is_right_again() -> None:
    trust = Trust()
    for _ in range(60):
        trust.learn({1, 2}, {3})
    assert not trust.enough
    for _ in range(60):
        trust.learn({1, 2}, {1, 2})
    assert trust.enough
    trust.learn(set(), {1})
    assert trust.enough


def test_advice_comes_true_and_is_counted(model: Model) -> None:
    engine = model.open("8x", expert_threads=2)
    assert engine.pager is not None
    session = engine.session()
    session.sync(model.tokens[:60])
    before = engine.pager.stats()
    for token in model.tokens[60:]:
        session.advance(token)
    hashed, *learned = (b - a for a, b in zip(before, engine.pager.stats(), strict=True))
    assert hashed.advised > 0
    assert hashed.misses == 0  # the layer's experts follow from the token, before the layer runs
    assert sum(layer.advised for layer in learned) > 0


def test_the_fastest_number_of_threads_is_taken(model: Model) -> None:
    engine = model.open("19x", expert_threads=1)
    pager = engine.pager
    assert pager is not None

    def slow(records: RecordMap, expert: int, into: memoryview) -> None:
        time.sleep(0.004)

    pager.pool.reader = slow
    assert pager.calibrate() > 1
    times = {1: 5.0, 2: 2.0, 4: 1.97, 8: 3.0}
    readings = iter([t for n in CANDIDATES for t in (10.0, 10.0 + times[n])])
    assert pager.calibrate(lambda: next(readings)) == 2  # 4 is not faster by enough
    assert pager.pool.threads == 2
