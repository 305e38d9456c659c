"""Sessions go back: snapshot, restore, fork, take back. What follows is bit-equal to never having left."""

from __future__ import annotations

import re
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import same_bits, state_bits
from small_model import new_session, tiny_model, token_ids

from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.language_model import Logits
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.engine.session import Session, SessionSnapshot
from dsv4_mlx.engine.session_rows import sample
from dsv4_mlx.errors import DoesNotFit, InputError, ModelOutputError, UsageError
from dsv4_mlx.model.transformer import Transformer

# Lengths around the ends of groups of 4 and 128 and of the window, and where nothing ends.
TOKENS = token_ids(np.random.default_rng(8), 80)
LENGTHS = (3, 4, 31, 126, 127, 128, 129, 255, 257, 262)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def at(model: Transformer, tokens: list[int]) -> Session:
    """A session that has prefilled `tokens`."""
    session = new_session(model)
    session.sync(tokens)
    return session


def walk(session: Session, tokens: list[int]) -> list[Logits]:
    """The logits after each of `tokens`, one at a time."""
    return [session.advance(token) for token in tokens]


def draw(session: Session, count: int, seed: int = 3) -> tuple[list[int], list[Logits]]:
    """`count` sampled tokens and the logits after each."""
    sampler = Sampler(SamplingOptions(seed=seed))
    start = len(session.tokens)
    session.sync(list(session.tokens))
    rows = [session.advance(sample(session, sampler)) for _ in range(count)]
    return session.tokens[start:], rows


def same(found: list[Logits], expected: list[Logits]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("length", LENGTHS)
def test_restore_then_generate_again(model: Transformer, rng: np.random.Generator, length: int) -> None:
    session = at(model, token_ids(rng, length))
    snapshot = session.snapshot()
    first = draw(session, 14)
    session.restore(snapshot)
    again = draw(session, 14)
    assert again[0] == first[0]
    assert same(again[1], first[1])


@pytest.mark.parametrize("length", (5, 127, 250))
def test_restore_after_the_sequence_went_another_way(
    model: Transformer, rng: np.random.Generator, length: int
) -> None:
    session = at(model, token_ids(rng, length))
    ahead, other = token_ids(rng, 10), token_ids(rng, 140)
    snapshot = session.snapshot()
    expected = walk(session, ahead)
    session.restore(snapshot)
    session.sync(session.tokens + other)  # a chunk: it fills the rings and closes many groups
    walk(session, ahead)
    session.restore(snapshot)
    assert same(walk(session, ahead), expected)


@pytest.mark.parametrize("length", (3, 4, 126, 127, 128, 133, 257))
def test_take_back_one_to_eight(model: Transformer, rng: np.random.Generator, length: int) -> None:
    tokens, ahead = token_ids(rng, length), token_ids(rng, 12)
    wrong, session = token_ids(rng, 8), at(model, tokens)
    expected = walk(at(model, tokens), ahead)
    for count in range(1, 9):
        walk(session, wrong[:count])
        session.take_back(count)
        assert session.tokens == tokens
        assert same(walk(session, ahead[:8]), expected[:8]), f"after taking back {count}"
        session.take_back(8)
    assert same(walk(session, ahead), expected)


@pytest.mark.parametrize("count", (2, 7, 9, 10, 140))
def test_take_back_then_a_chunk(model: Transformer, rng: np.random.Generator, count: int) -> None:
    """Chunks up to 9 rows are read back from the ring, longer ones are not: both after taking back."""
    tokens, chunk = token_ids(rng, 130), token_ids(rng, count)
    straight = at(model, tokens)
    expected = straight.sync(tokens + chunk)
    session = at(model, tokens)
    walk(session, token_ids(rng, 8))
    session.take_back(8)
    assert np.array_equal(session.sync(tokens + chunk), expected)
    more = token_ids(rng, 9)
    assert same(walk(session, more), walk(straight, more))


def test_taking_back_is_limited_and_says_so(model: Transformer, rng: np.random.Generator) -> None:
    session = at(model, token_ids(rng, 40))
    walk(session, token_ids(rng, 3))
    session.take_back(5)  # 38, five behind the furthest
    for count in (4, -1):
        with pytest.raises(UsageError, match="expected 0 to 3 here"):
            session.take_back(count)
    session.take_back(3)
    assert len(session.tokens) == 35
    short = at(model, token_ids(rng, 2))
    short.take_back(2)
    assert short.tokens == []
    with pytest.raises(UsageError, match="0 to 0"):
        short.take_back(1)


@pytest.mark.parametrize("length", (6, 127, 257))
def test_fork_is_independent(model: Transformer, rng: np.random.Generator, length: int) -> None:
    tokens = token_ids(rng, length)
    here, there = token_ids(rng, 20), token_ids(rng, 20)
    expected_here, expected_there = walk(at(model, tokens), here), walk(at(model, tokens), there)
    session = at(model, tokens)
    twin = session.fork()
    found_here, found_there = [], []
    for a, b in zip(here, there, strict=True):  # in turns: a shared buffer would show
        found_here.append(session.advance(a))
        found_there.append(twin.advance(b))
    assert same(found_here, expected_here)
    assert same(found_there, expected_there)


def test_a_fork_can_restore_what_was_taken_before_it(model: Transformer, rng: np.random.Generator) -> None:
    session, ahead = at(model, token_ids(rng, 130)), token_ids(rng, 9)
    snapshot = session.snapshot()
    expected = walk(session, ahead)
    twin = session.fork()
    walk(session, ahead)
    later = session.snapshot()
    twin.restore(snapshot)
    assert same(walk(twin, ahead), expected)
    assert session.holds(later)
    with pytest.raises(UsageError, match="never held it"):
        twin.restore(later)


@pytest.mark.parametrize("way", ("restore", "take back", "sync"))
def test_a_snapshot_whose_rows_are_gone_is_refused(
    model: Transformer, rng: np.random.Generator, way: str
) -> None:
    """The session goes back before it and continues: rows the snapshot stands on are another sequence's."""
    session = at(model, token_ids(rng, 120))
    early = session.snapshot()
    session.sync(session.tokens + token_ids(rng, 10))
    late = session.snapshot()
    back: dict[str, Callable[[], object]] = {
        "restore": lambda: session.restore(early),
        "take back": lambda: session.take_back(8),
        "sync": lambda: session.sync(session.tokens[:100]),
    }
    back[way]()
    if way != "sync":
        assert session.holds(late)  # nothing has been written yet
        session.advance(9)
    assert not session.holds(late)
    tokens = list(session.tokens)
    with pytest.raises(UsageError, match="130 tokens can't be restored"):
        session.restore(late)
    assert session.tokens == tokens


def test_a_snapshot_ahead_can_be_restored_before_anything_is_written(
    model: Transformer, rng: np.random.Generator
) -> None:
    session, ahead = at(model, token_ids(rng, 60)), token_ids(rng, 6)
    early = session.snapshot()
    walk(session, token_ids(rng, 75))
    late = session.snapshot()
    expected = walk(session, ahead)
    session.restore(early)
    session.restore(late)
    assert same(walk(session, ahead), expected)


def test_after_a_fork_snapshots_belong_to_who_took_them(model: Transformer, rng: np.random.Generator) -> None:
    session = at(model, token_ids(rng, 20))
    twin = session.fork()
    session.advance(9)
    mine = session.snapshot()
    assert session.holds(mine)
    assert not twin.holds(mine)


def test_a_snapshot_of_another_session_is_refused(model: Transformer, rng: np.random.Generator) -> None:
    tokens = token_ids(rng, 20)
    one, two = at(model, tokens), at(model, tokens)
    with pytest.raises(UsageError):
        two.restore(one.snapshot())


def test_restart_points_come_back_with_a_snapshot(model: Transformer, rng: np.random.Generator) -> None:
    """A prompt that branches off behind the snapshot starts from the cut at 512 again, not from nothing."""
    tokens = token_ids(rng, 520)
    session = at(model, tokens)
    snapshot = session.snapshot()
    session.sync(tokens + token_ids(rng, 40))
    session.restore(snapshot)
    other = tokens[:515] + token_ids(rng, 9)
    logits = session.sync(other)
    assert session.cached == 512
    assert np.array_equal(logits, at(model, other).sync(other))


def test_a_step_that_fails_leaves_an_empty_session(
    model: Transformer, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a step must never be continued from, and the logits before it never be handed out for it."""
    tokens = token_ids(rng, 30)
    session = at(model, tokens)
    snapshot = session.snapshot()
    expected = at(model, [*tokens, 9]).sync([*tokens, 9])
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "logits", lambda self, streams, last: streams[..., 0, :] * float("nan"))
        with pytest.raises(ModelOutputError):
            session.sync([*tokens, 9])
    assert session.tokens == []
    assert not session.holds(snapshot)
    assert np.array_equal(session.sync([*tokens, 9]), expected)


def test_advance_checks_its_token(model: Transformer) -> None:
    session = new_session(model, context=2)
    for token in (-1, 384):
        with pytest.raises(InputError, match="0 to 383"):
            session.advance(token)
    walk(session, [9, 9])
    with pytest.raises(DoesNotFit):
        session.advance(9)


def test_returned_logits_are_safe_from_callers(model: Transformer) -> None:
    session = new_session(model)
    with pytest.raises(ValueError, match="read-only"):
        session.advance(9)[0] = 1.0


CALLS: dict[str, Callable[[Session, SessionSnapshot], object]] = {
    "sync": lambda session, early: session.sync(TOKENS[:50]),
    "prefill": lambda session, early: list(session.prefill(TOKENS[:50])),
    "advance": lambda session, early: session.advance(9),
    "feed": lambda session, early: session.feed(9),
    "settle": lambda session, early: session.settle(session.row),
    "prepare": lambda session, early: session.prepare(mx.array(3)),
    "take_back": lambda session, early: session.take_back(1),
    "restore": lambda session, early: session.restore(early),
    "adopt": lambda session, early: session.adopt(TOKENS[:3], session.model.new_state(growth=256)),
    "cached_prefix": lambda session, early: session.cached_prefix(TOKENS[:70]),
    "fork": lambda session, early: session.fork().sync(TOKENS[:50]),
    "fork_at": lambda session, early: session.fork_at(TOKENS[:30]).sync(TOKENS[:35]),
    "snapshot": lambda session, early: session.snapshot(),
    "holds": lambda session, early: session.holds(session.snapshot()),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_method_says_whether_it_changes_the_cache(model: Transformer, name: str) -> None:
    assert sorted(CALLS) == sorted(n for n, f in vars(Session).items() if callable(f) and n[0] != "_")
    session = new_session(model)
    session.sync(TOKENS[:20])
    early = session.snapshot()
    session.sync(TOKENS[:40])
    state, before = session._state, (session._state.length, list(session.tokens), state_bits(session._state))
    CALLS[name](session, early)
    after = session._state.length, session.tokens, state_bits(session._state)
    same = session._state is state and after[:2] == before[:2] and same_bits(after[2], before[2])
    says = re.search("(Changes|Replaces) the cache", getattr(Session, name).__doc__) is not None
    assert says == (not same)
