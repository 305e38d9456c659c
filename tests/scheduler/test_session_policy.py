"""What keeps memory bounded, whatever comes: random requests against the policy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsv4_mlx.scheduler.session_policy import (
    SMALL,
    WORTH,
    CachedSession,
    SessionLimits,
    SessionPlan,
    growth,
    plan,
    safe,
)

CONTEXT, STEP = 65_536, 1024


def cost(tokens: int) -> int:
    """Bytes: a part that every session has, and rows in steps."""
    return 3000 + -(-tokens // STEP) * STEP


def limits(budget: int = cost(CONTEXT), count: int = 4) -> SessionLimits:
    return SessionLimits(budget, count, CONTEXT, cost)


def held(key: int, tokens: int, prompt: int | None = None, used: int = 0, claim: int = 0) -> CachedSession:
    return CachedSession(key, tokens, tokens if prompt is None else prompt, cost(tokens), used or key, claim)


def planned(
    sessions: list[CachedSession], prompt: int, keeps: dict[int, int], most: int = 100, **more: int
) -> SessionPlan:
    found = plan(sessions, lambda key: keeps.get(key, 0), prompt, most, limits(**more))
    assert found is not None
    return found


def test_the_longest_prefix_wins_and_goes_on_in_place() -> None:
    sessions = [held(1, 9000), held(2, 20_000), held(3, 500)]
    found = planned(sessions, 21_000, {1: 8000, 2: 19_500, 3: 500}, budget=10**6)
    assert (found.base, found.branch, found.evict) == (2, False, ())


def test_a_branch_keeps_what_would_be_lost() -> None:
    found = planned([held(1, 40_000)], 16_000, {1: 15_000}, budget=10**6)
    assert (found.base, found.branch) == (1, True)
    found = planned([held(1, 40_000)], 40_000, {1: 40_000 - SMALL + 1}, budget=10**6)
    assert (found.base, found.branch) == (1, False)


def test_sampled_tokens_that_are_lost_are_no_reason_to_branch() -> None:
    """Reasoning of the last turn that the template drops: nobody comes back to it."""
    found = planned([held(1, 40_000, prompt=20_000)], 20_100, {1: 19_900}, budget=10**6)
    assert (found.base, found.branch) == (1, False)


def test_a_session_in_use_is_branched_from_if_that_is_worth_it() -> None:
    busy = held(1, 20_000, claim=cost(21_000))
    assert planned([busy], 20_000, {1: 15_000}, budget=10**6).branch
    found = planned([busy], 20_000, {1: WORTH - 1}, budget=10**6)
    assert (found.base, found.branch) == (None, False)


def test_memory_too_small_for_a_branch_loses_the_rest_of_the_session() -> None:
    found = planned([held(1, 60_000)], 50_000, {1: 49_000})
    assert (found.base, found.branch, found.evict) == (1, False, ()), "what it shares is kept"


def test_a_small_request_leaves_large_sessions_alone() -> None:
    """Memory is full to the brim with one long session; the title request runs beside it."""
    full = [held(1, CONTEXT)]
    found = planned(full, 300, {1: 40}, most=CONTEXT)
    assert (found.base, found.evict) == (None, ())
    small = [held(key, 2000) for key in range(2, 8)]
    found = planned([*full, *small], 300, {}, count=4)
    assert found.evict and 1 not in found.evict


def test_the_least_recently_used_goes() -> None:
    sessions = [held(1, 20_000, used=3), held(2, 20_000, used=1), held(3, 20_000, used=2)]
    assert planned(sessions, 20_000, {}, budget=3 * cost(20_000)).evict == (2,)


def test_an_active_session_never_goes() -> None:
    busy = held(1, 40_000, claim=cost(CONTEXT))
    assert plan([busy], lambda _: 0, 40_000, 10, limits()) is None
    assert plan([busy], lambda _: 0, 15_000, 4000, limits()) is not None, "one can end before the other"


@dataclass(frozen=True)
class Ask:
    prompt: int
    most: int
    share: float  # of the prompt, with one of the sessions
    whom: int


ASKS = st.builds(
    Ask,
    st.one_of(st.integers(1, SMALL), st.integers(1, CONTEXT - 1)),
    st.one_of(st.integers(0, 500), st.just(CONTEXT), st.integers(0, CONTEXT)),
    st.floats(0, 1),
    st.integers(0, 7),
)
MOVES = st.lists(st.one_of(ASKS, st.integers(0, 3), st.tuples(st.integers(0, 3))), max_size=60)


class Server:
    """The pool's bookkeeping in numbers. At most `active` jobs, as the runner has it."""

    def __init__(self, limits: SessionLimits, active: int) -> None:
        self.limits, self.active = limits, active
        self.sessions: dict[int, CachedSession] = {}
        self.ends: dict[int, int] = {}  # tokens that a job will have in the end
        self.clock = 0

    @property
    def busy(self) -> list[int]:
        return [key for key, one in self.sessions.items() if not one.idle]

    def ask(self, ask: Ask) -> bool:
        if len(self.busy) >= self.active:
            return False
        keys = sorted(self.sessions)
        near = keys[ask.whom % len(keys)] if keys else None
        shared = min(int(ask.prompt * ask.share), self.sessions[near].tokens) if near is not None else 0
        found = plan(
            list(self.sessions.values()),
            lambda key: shared if key == near else 0,
            ask.prompt,
            min(ask.most, CONTEXT - ask.prompt),
            self.limits,
        )
        if found is None:
            assert self.busy, "with nothing active, every job is let in"
            return False
        self.evict(found.evict, ask.prompt < SMALL)
        self.clock += 1
        key = self.clock if found.base is None or found.branch else found.base
        self.sessions[key] = CachedSession(key, ask.prompt, ask.prompt, found.size, self.clock, found.claim)
        self.ends[key] = min(CONTEXT, ask.prompt + ask.most)
        return True

    def evict(self, keys: tuple[int, ...], small: bool) -> None:
        for key in keys:
            gone = self.sessions.pop(key)
            assert gone.idle
            assert not (small and not self.limits.small(gone)), "a small request made a large session go"

    def grow(self, key: int) -> bool:
        """One more step of memory, or the end; whether it could."""
        one = self.sessions[key]
        tokens = min(self.ends[key], -(-(one.tokens + 1) // STEP) * STEP)
        gone = growth(list(self.sessions.values()), key, cost(tokens), self.limits)
        if gone is None:
            return False
        self.evict(gone, small=False)
        self.sessions[key] = CachedSession(
            key, tokens, one.prompt, max(one.bytes, cost(tokens)), one.used, one.claim
        )
        if tokens == self.ends[key]:
            self.end(key)
        return True

    def end(self, key: int) -> None:
        one = self.sessions[key]
        self.clock += 1
        self.sessions[key] = CachedSession(key, one.tokens, one.prompt, one.bytes, self.clock)
        gone = growth(list(self.sessions.values()), key, one.bytes, self.limits) or ()
        if one.prompt < SMALL and not all(self.limits.small(self.sessions[other]) for other in gone):
            del self.sessions[key]
        else:
            self.evict(gone, one.prompt < SMALL)

    def check(self) -> None:
        everything = list(self.sessions.values())
        assert sum(one.bytes for one in everything) <= self.limits.budget + self.limits.side
        assert sum(one.bytes for one in everything if not self.limits.small(one)) <= self.limits.budget
        assert len(everything) <= self.limits.count + 1
        assert safe(everything, self.limits)


@settings(max_examples=300)
@given(MOVES, st.integers(1, 4), st.integers(0, 100_000))
@example([Ask(100, CONTEXT, 0.0, 0), Ask(CONTEXT - 9, 9, 0.0, 0), Ask(100, CONTEXT, 0.0, 0)], 2, 0)
def test_memory_holds_and_everybody_ends(moves: list[Ask | int | tuple[int]], count: int, more: int) -> None:
    server = Server(limits(cost(CONTEXT) + more, count=count), active=count)
    for move in moves:
        if isinstance(move, Ask):
            server.ask(move)
        elif server.busy:
            busy = server.busy
            if isinstance(move, tuple):
                server.end(busy[move[0] % len(busy)])
            else:
                server.grow(busy[move % len(busy)])
        server.check()
    while server.busy:
        assert any(server.grow(key) for key in server.busy), "every active job waits for another's memory"
        server.check()
    assert server.ask(Ask(CONTEXT - 1, 1, 0.0, 0))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("_evicted", lambda *_: ()), ("safe", lambda held, limits: True), ("_bases", lambda held, kept: [])],
)
def test_the_simulation_notices_a_wrong_policy(
    name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs, each of which may come to need everything."""
    monkeypatch.setattr(f"dsv4_mlx.scheduler.session_policy.{name}", wrong)
    server = Server(limits(), active=2)
    with pytest.raises(AssertionError):
        for _ in range(2):
            server.ask(Ask(CONTEXT // 2 - 4000, CONTEXT, 0.0, 0))
            server.check()
        for _ in range(100):
            assert any(server.grow(key) for key in server.busy)
            server.check()
