"""Where a prefill is cut: a pure function of the tokens before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import MARKERS

from dsv4_mlx.engine.chunking import APART, EVERY, chunk_ends

PLAIN = 100
# Mostly plain tokens, with markers often enough to meet every rule.
TOKENS = st.lists(
    st.sampled_from([PLAIN] * 60 + [MARKERS.end, MARKERS.assistant, MARKERS.think, MARKERS.end_think]),
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
    """The rule once more, in other words."""
    found = chunk_ends(tokens, MARKERS)
    assert found == sorted(set(found)) and all(1 <= cut <= len(tokens) for cut in found)
    assert [cut for cut in range(EVERY, len(tokens) + 1, EVERY) if cut not in found] == []
    for i, cut in enumerate(found):
        last = found[i - 1] if i else 0
        ends = tokens[cut - 1] == MARKERS.end
        opens = cut > 1 and tokens[cut - 2] == MARKERS.assistant
        opens = opens and tokens[cut - 1] in (MARKERS.think, MARKERS.end_think)
        assert cut % EVERY == 0 or (cut - last >= APART and (ends or opens))
    for cut in range(1, len(tokens) + 1):
        last = max((c for c in found if c < cut), default=0)
        if tokens[cut - 1] == MARKERS.end and cut - last >= APART:
            assert cut in found


def test_known_cuts() -> None:
    tokens = [PLAIN] * 1100
    assert chunk_ends(tokens, MARKERS) == [512, 1024]
    tokens[299] = MARKERS.end  # 300 tokens in: far enough
    tokens[398:400] = [MARKERS.assistant, MARKERS.think]  # 100 after that: too near
    tokens[600:602] = [MARKERS.assistant, MARKERS.end_think]  # 90 after 512: too near
    tokens[800:802] = [MARKERS.assistant, MARKERS.end_think]  # 290 after 512
    assert chunk_ends(tokens, MARKERS) == [300, 512, 802, 1024]
    tokens[800] = PLAIN  # a think marker that opens nothing
    assert chunk_ends(tokens, MARKERS) == [300, 512, 1024]


@pytest.mark.parametrize("gap", [APART - 1, APART])
def test_a_message_cuts_from_exactly_256_tokens_on(gap: int) -> None:
    """From the start, and from the cut before."""
    tokens = [PLAIN] * (EVERY + gap)
    tokens[gap - 1] = MARKERS.end
    tokens[EVERY + gap - 1] = MARKERS.end
    assert chunk_ends(tokens, MARKERS) == ([gap, EVERY, EVERY + gap] if gap == APART else [EVERY])


def test_without_markers_only_multiples_cut() -> None:
    assert chunk_ends([MARKERS.end] * 1100, None) == [512, 1024]
    assert chunk_ends([], MARKERS) == []
