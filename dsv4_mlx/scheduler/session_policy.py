"""Which live session a prompt continues, and which ones give way to it. Pure: numbers in, a plan out.

Memory stays bounded and no job that was let in fails for it:

    a job is let in, and may grow   while the active jobs could still all end, one after another, each
                                    grown to the most it may become (the banker's algorithm)
    idle sessions go                only when memory is really taken, the least recently used first

An agent's long session outlives its side requests: a small request never makes a large session go. For that
small ones may use `side` bytes and one place more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

SMALL = 2048  # prompt tokens: below, a session is small; so many that would be lost are worth a branch
NEW = -1  # the key of a session that is not there yet
WORTH = 256  # tokens that are worth branching from a session in use


@dataclass(frozen=True)
class CachedSession:
    """A live session. `tokens` it holds, of which `prompt` were given; `bytes` it takes now; `used`: a clock
    of last use; `claim`: bytes its job may come to need, 0 where no job runs."""

    key: int
    tokens: int
    prompt: int
    bytes: int
    used: int
    claim: int = 0

    @property
    def idle(self) -> bool:
        return self.claim == 0


@dataclass(frozen=True)
class SessionLimits:
    """`budget`: bytes for sessions, enough for one of the whole context; `count`: most sessions, more than
    ever run at once. `cost(tokens)`: bytes of a session of so many tokens. `context`: most tokens of one."""

    budget: int
    count: int
    context: int
    cost: Callable[[int], int]

    @property
    def side(self) -> int:
        return self.cost(min(2 * SMALL, self.context))

    def small(self, one: CachedSession) -> bool:
        return one.prompt < SMALL and one.bytes <= self.side


@dataclass(frozen=True)
class SessionPlan:
    """`base`: the session to go on from (None: a new one), a branch of it if `branch`. `evict`: who goes.
    `size` and `claim`: bytes the session takes at first, and may come to need."""

    base: int | None
    branch: bool
    evict: tuple[int, ...]
    size: int
    claim: int


def plan(
    held: Sequence[CachedSession],
    keeps: Callable[[int], int],
    prompt: int,
    max_tokens: int,
    limits: SessionLimits,
) -> SessionPlan | None:
    """The plan for a prompt of `prompt` tokens; `keeps(key)`: how many of them a session would keep.

    None: active jobs need the memory; ask again when one has ended.
    """
    size = limits.cost(min(limits.context, prompt + 1))
    claim = limits.cost(min(limits.context, prompt + max_tokens))
    fresh: SessionPlan | None = None
    kept = {one.key: keeps(one.key) for one in held}
    for base, branch in _bases(held, kept):
        going = CachedSession(NEW, prompt, prompt, size, 0, max(size, claim))
        stays = list(held)
        if base is not None and not branch:
            if limits.small(going) and not limits.small(base):
                continue  # it would cut a large session down to a small one
            stays.remove(base)
            going = replace(going, bytes=max(size, base.bytes), claim=max(claim, size, base.bytes))
        if not safe([*stays, going], limits):
            continue
        gone = _evicted(
            [*stays, going], [one for one in stays if one is not base], limits.small(going), limits
        )
        if gone is None:
            continue
        found = SessionPlan(base.key if base else None, branch, gone, going.bytes, going.claim)
        if base is not None or not any(kept[key] for key in gone):
            return found
        fresh = found  # but rather go on from a session that would go for it
    return fresh


def growth(
    held: Sequence[CachedSession], growing: int, size: int, limits: SessionLimits
) -> tuple[int, ...] | None:
    """Who goes so that the session `growing` may take `size` bytes; None: it has to wait for another job."""
    all_of_them = [replace(one, bytes=max(one.bytes, size)) if one.key == growing else one for one in held]
    if not safe(all_of_them, limits):
        return None
    grown = next(one for one in all_of_them if one.key == growing)
    others = [one for one in all_of_them if one.key != growing]
    for gently in sorted({limits.small(grown), False}, reverse=True):
        gone = _evicted(all_of_them, others, gently, limits)
        if gone is not None:
            return gone
    return None


def safe(held: Sequence[CachedSession], limits: SessionLimits) -> bool:
    """Whether the active jobs can all end in some order, whatever each still comes to need."""
    active = [one for one in held if not one.idle]
    large = [one for one in active if one.prompt >= SMALL or one.claim > limits.side]
    return _can_end(large, limits.budget) and _can_end(active, limits.budget + limits.side)


def _can_end(active: Sequence[CachedSession], total: int) -> bool:
    free = total - sum(one.bytes for one in active)
    if free < 0:
        return False
    for one in sorted(active, key=lambda one: one.claim - one.bytes):
        if one.claim - one.bytes > free:
            return False
        free += one.bytes  # it has ended, and its session may go
    return True


def _bases(
    held: Sequence[CachedSession], kept: Mapping[int, int]
) -> Iterable[tuple[CachedSession | None, bool]]:
    """What to go on from, best first: (session, as a branch). A new session is the last resort but one:
    to lose part of an idle session, where memory allows nothing better."""
    ways: list[tuple[int, bool, int, CachedSession]] = []
    last: list[tuple[int, CachedSession]] = []
    for one in held:
        most = kept[one.key]
        lost = max(0, one.prompt - most)
        if one.idle and most:
            if lost < SMALL:
                ways.append((most, True, -lost, one))
            else:
                last.append((most, one))
        if most >= WORTH:
            ways.append((most, False, -lost, one))
    ways.sort(key=lambda way: (*way[:3], way[3].used), reverse=True)
    yield from ((one, not in_place) for _, in_place, _, one in ways)
    yield None, False
    yield from ((one, False) for _, one in sorted(last, key=lambda way: -way[0]))


def _evicted(
    all_of_them: Sequence[CachedSession], others: Sequence[CachedSession], gently: bool, limits: SessionLimits
) -> tuple[int, ...] | None:
    """Who of `others` goes, small ones only if `gently`, so that `all_of_them` keep the limits; None if they
    can't. Large sessions alone keep to budget and count; with small ones, to `side` and one place more."""
    size, count = sum(one.bytes for one in all_of_them), len(all_of_them)
    large_size = sum(one.bytes for one in all_of_them if not limits.small(one))
    large_count = sum(not limits.small(one) for one in all_of_them)
    gone: list[int] = []
    for one in sorted(others, key=lambda one: one.used):
        if not one.idle or (gently and not limits.small(one)):
            continue
        over = size > limits.budget + limits.side or count > limits.count + 1
        large_over = large_size > limits.budget or large_count > limits.count
        if over or (large_over and not limits.small(one)):
            gone.append(one.key)
            size, count = size - one.bytes, count - 1
            if not limits.small(one):
                large_size, large_count = large_size - one.bytes, large_count - 1
    kept = large_size <= limits.budget and large_count <= limits.count
    return tuple(gone) if kept and size <= limits.budget + limits.side and count <= limits.count + 1 else None
