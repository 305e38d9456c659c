"""Where a prefill is cut: a pure function of the tokens before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import MARKERS

from dsv4_mlx.engine.chunking import APART, EVERY, LATEST, WORTH, chunk_ends, spread_restart_points
from dsv4_mlx.engine.memory import RESTART_POINTS
from dsv4_mlx.model.state import Snapshot

PLAIN = 100
# Mostly plain tokens, with markers often enough to meet every rule.
TOKENS = st.lists(
    st.sampled_from([PLAIN] * 60 + [MARKERS.end, MARKERS.user, MARKERS.assistant, MARKERS.think]),
    max_size=1600,
)


@given(tokens=TOKENS, at=st.integers(0, 1600))
def test_a_cut_depends_on_what_is_before_it(tokens: list[int], at: int) -> None:
    whole = chunk_ends(tokens, MARKERS)
    assert chunk_ends(tokens[:at], MARKERS) == [cut for cut in whole if cut <= at]
    assert chunk_ends(tokens[:at] + [PLAIN] * 700, MARKERS)[: len(chunk_ends(tokens[:at], MARKERS))] == [
        cut for cut in whole if cut <= at
    ]


@given(tokens=TOKENS)
def test_cuts_are_where_the_rule_puts_them(tokens: list[int]) -> None:
    """The rule once more, in other words: a place is a cut if and only if one of four reasons holds."""
    found = chunk_ends(tokens, MARKERS)
    assert found == sorted(set(found))
    first = tokens.index(MARKERS.user) + 1 if MARKERS.user in tokens else 0
    for place in range(1, len(tokens) + 1):
        back = place - max((cut for cut in found if cut < place), default=0)
        wanted = place % EVERY == 0 or (place == first and place > WORTH)
        wanted |= tokens[place - 1] == MARKERS.assistant and back >= WORTH
        wanted |= tokens[place - 1] == MARKERS.end and back >= APART
        assert (place in found) == wanted


def test_known_cuts() -> None:
    tokens = [PLAIN] * 1100
    assert chunk_ends(tokens, MARKERS) == [512, 1024]
    tokens[99] = MARKERS.user  # ends what every conversation of a program begins with
    tokens[299] = MARKERS.end  # 200 after that: too near
    tokens[398:400] = [MARKERS.assistant, MARKERS.think]  # before the think marker
    tokens[420] = MARKERS.assistant  # 22 after that: too near
    tokens[450] = MARKERS.user  # not the first
    tokens[800] = MARKERS.end
    assert chunk_ends(tokens, MARKERS) == [100, 399, 512, 801, 1024]


@pytest.mark.parametrize("marker, gap", [(MARKERS.end, APART), (MARKERS.assistant, WORTH)])
def test_a_marker_cuts_from_exactly_so_many_tokens_on(marker: int, gap: int) -> None:
    """From the start, and from the cut before."""
    for length, expected in ((gap - 1, [EVERY]), (gap, [gap, EVERY, EVERY + gap])):
        tokens = [PLAIN] * (EVERY + length)
        tokens[length - 1] = tokens[EVERY + length - 1] = marker
        assert chunk_ends(tokens, MARKERS) == expected


@pytest.mark.parametrize("system, expected", [(WORTH - 1, []), (WORTH, [WORTH + 1])])
def test_instructions_are_a_restart_point_from_64_tokens_on(system: int, expected: list[int]) -> None:
    assert chunk_ends([*[PLAIN] * system, MARKERS.user, *[PLAIN] * 50, MARKERS.user], MARKERS) == expected


def test_without_markers_only_multiples_cut() -> None:
    assert chunk_ends([MARKERS.end] * 1100, None) == [512, 1024]
    assert chunk_ends([], MARKERS) == []


@given(lengths=st.sets(st.integers(1, 100_000), max_size=60).map(sorted))
def test_the_first_and_the_latest_restart_points_stay(lengths: list[int]) -> None:
    kept = [p.length for p in spread_restart_points([Snapshot(n, n, ()) for n in lengths])]
    assert len(kept) == min(len(lengths), RESTART_POINTS) and kept == sorted(set(kept) & set(lengths))
    assert kept[:1] == lengths[:1] and kept[-LATEST:] == lengths[-LATEST:]
