"""Where a prefill is cut, and which of the cuts a session can go back to.

A cut depends on the tokens before it only: never on memory, time, or what was restored. So a prompt is
cut alike whenever it is prefilled, and a restored session is bit-equal to a cold one.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_mlx.engine.memory import RESTART_POINTS
from dsv4_mlx.model.state import Snapshot
from dsv4_mlx.tokenizer.template import Markers

EVERY = 512  # a cut at each multiple, counted from position 0
APART = 256  # a message boundary cuts when the last cut is at least this far back
LATEST = 4  # of the restart points, those of the latest cuts are kept whatever lies before


def chunk_ends(tokens: Sequence[int], markers: Markers | None) -> list[int]:
    """Positions n in 1 .. len(tokens), in order, after which the prefill of `tokens` is cut.

    Message boundaries are the think marker that opens an assistant's turn, and end of sentence. The end of
    `tokens` is not a cut by itself.
    """
    found: list[int] = []
    last = 0
    previous = -1
    for position, token in enumerate(tokens, start=1):
        if position % EVERY == 0 or (position - last >= APART and _closes(previous, token, markers)):
            found.append(position)
            last = position
        previous = token
    return found


def _closes(previous: int, token: int, markers: Markers | None) -> bool:
    if markers is None:
        return False
    opens = previous == markers.assistant and token in (markers.think, markers.end_think)
    return token == markers.end or opens


def spread_restart_points(points: Sequence[Snapshot]) -> list[Snapshot]:
    """At most RESTART_POINTS of `points`, in order: the latest, and before them about evenly spread ones.

    A later prompt may share any part of this one, such as an agent's instructions.
    """
    kept = list(points)
    while len(kept) > RESTART_POINTS:
        old = kept[:-LATEST]
        starts = [0, *(point.length for point in old[:-1])]
        ends = [*(point.length for point in old[1:]), kept[-LATEST].length]
        gaps = [end - start for start, end in zip(starts, ends, strict=True)]
        del kept[gaps.index(min(gaps))]
    return kept
