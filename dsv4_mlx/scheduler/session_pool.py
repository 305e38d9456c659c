"""The live sessions. Used in the engine thread only; what it decides is session_policy.py's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from dsv4_mlx.engine.language_model import TokenSequence
from dsv4_mlx.scheduler.session_policy import SMALL, CachedSession, SessionLimits, growth, plan


class Reusable(TokenSequence, Protocol):
    """A session that the pool can keep; as in engine.Session."""

    @property
    def capacity(self) -> int: ...

    @property
    def growth(self) -> int: ...

    def cached_prefix(self, tokens: Sequence[int]) -> int: ...

    def fork_at(self, tokens: Sequence[int]) -> Self: ...


@dataclass(frozen=True)
class Lease:
    """A session while a job runs in it."""

    key: int
    session: Reusable


class SessionPool:
    """Sessions with their state, each free for the next prompt that shares a beginning with it."""

    def __init__(self, limits: SessionLimits, new: Callable[[], Reusable]) -> None:
        self.limits, self._new = limits, new
        self.evictions = self.branches = 0
        self._sessions: dict[int, Reusable] = {}
        self._held: dict[int, CachedSession] = {}
        self._clock = 0

    @property
    def held(self) -> list[CachedSession]:
        return list(self._held.values())

    @property
    def idle(self) -> list[Reusable]:
        """Sessions in which no job runs."""
        return [self._sessions[one.key] for one in self.held if one.idle]

    def adopt(self, session: Reusable) -> None:
        """Keep a session that was made elsewhere, for the prompt that goes on from it."""
        self._clock += 1
        key, tokens, size = self._clock, len(session.tokens), self.limits.cost(session.capacity)
        self._sessions[key] = session
        self._held[key] = CachedSession(key, tokens, tokens, size, self._clock)
        self._evict(growth(self.held, key, size, self.limits) or ())

    def acquire(self, prompt: Sequence[int], max_tokens: int) -> Lease | None:
        """A session for `prompt`, to be released or dropped; None while active jobs need the memory.

        May evict idle sessions. The lease is valid until `release` or `drop`: nobody else has its session.
        """
        tokens = list(prompt)
        found = plan(
            self.held,
            lambda key: self._sessions[key].cached_prefix(tokens),
            len(tokens),
            max_tokens,
            self.limits,
        )
        if found is None:
            return None
        self._evict(found.evict)
        self._clock += 1
        key = found.base
        if key is None or found.branch:
            session = self._new() if key is None else self._sessions[key].fork_at(tokens)
            key = self._clock
            self._sessions[key] = session
            self.branches += found.branch
        session = self._sessions[key]
        self._held[key] = CachedSession(key, len(tokens), len(tokens), found.size, self._clock, found.claim)
        return Lease(key, session)

    def may_go_on(self, lease: Lease) -> bool:
        """Whether the session may take one more token now; else ask again when another job has ended.

        May evict idle sessions. The answer is good for that one token.
        """
        session = lease.session
        if len(session.tokens) < session.capacity:
            return True
        held = self._held[lease.key]
        size = self.limits.cost(session.capacity + session.growth)
        gone = growth(self.held, lease.key, size, self.limits) if size > held.bytes else ()
        if gone is None:
            return False
        self._held[lease.key] = replace(
            held, bytes=max(size, held.bytes), tokens=max(held.tokens, len(session.tokens) + 1)
        )
        self._evict(gone)
        return True

    def release(self, lease: Lease) -> None:
        """The job is over; its session stays for later prompts until it is evicted. May evict others."""
        session, held = lease.session, self._held[lease.key]
        if not session.tokens:
            self.drop(lease)
            return
        self._clock += 1
        prompt, size = min(held.prompt, len(session.tokens)), self.limits.cost(session.capacity)
        self._held[lease.key] = CachedSession(lease.key, len(session.tokens), prompt, size, self._clock)
        gone = growth(self.held, lease.key, size, self.limits) or ()
        if prompt < SMALL and not all(self.limits.small(self._held[key]) for key in gone):
            self.drop(lease)  # a long answer to a small request is worth less than what it would displace
        else:
            self._evict(gone)

    def drop(self, lease: Lease) -> None:
        """The job failed; nothing of its session is kept. May be said twice."""
        self._sessions.pop(lease.key, None)
        self._held.pop(lease.key, None)

    def _evict(self, keys: Sequence[int]) -> None:
        for key in keys:
            del self._sessions[key], self._held[key]
            self.evictions += 1
