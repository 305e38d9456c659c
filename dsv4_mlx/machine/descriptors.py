"""How many files and connections the system lets this program have open. macOS says 256 until it is asked."""

from __future__ import annotations

import resource

OPEN_MAX = 10_240  # macOS takes no higher soft limit than this where the hard one is infinite
HEADROOM = 64  # Python, libraries, the loop, notes and pipes


def allow(wanted: int) -> int:
    """Raise the soft limit to `wanted` or as far as it goes, never lower it; how many may be open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    goal = min(wanted, OPEN_MAX if hard == resource.RLIM_INFINITY else hard)
    if goal <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
    except (ValueError, OSError):  # a system with a limit above these two
        return soft
    return goal


def connections(most: int, shards: int, spare: int) -> int:
    """At most `most`, and what the system allows beside a model of `shards` files and `spare` connections.

    A shard is opened by MLX, and once more where its experts are read from disk.
    """
    others = 2 * shards + spare + HEADROOM
    return max(1, min(most, allow(most + others) - others))
