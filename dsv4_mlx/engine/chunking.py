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
APART = 256  # an end of sentence cuts when the last cut is at least this far back
WORTH = 64  # tokens that cost about what a cut does: one more reading of the weights
LATEST = 4  # of the restart points, those of the latest cuts are kept whatever lies before


def chunk_ends(tokens: Sequence[int], markers: Markers | None) -> list[int]:
    """Positions n in 1 .. len(tokens), in order, after which the prefill of `tokens` is cut.

    At multiples of EVERY; and, where prompts meet, after a marker: the first user's, which ends what all
    conversations of a program begin with (instructions, tools), if that is at least WORTH tokens; an
    assistant's, before the think marker that the same turn has not in a later prompt, if the last cut is at
    least WORTH tokens back; and end of sentence, if it is APART. The end of `tokens` is not a cut by itself.
    """
    found: list[int] = []
    last, begun = 0, False
    for position, token in enumerate(tokens, start=1):
        cut = position % EVERY == 0
        if markers is not None:
            if token == markers.user and not begun:
                begun, cut = True, cut or position > WORTH
            far = position - last
            cut = cut or (token == markers.assistant and far >= WORTH)
            cut = cut or (token == markers.end and far >= APART)
        if cut:
            found.append(position)
            last = position
    return found


def spread_restart_points(points: Sequence[Snapshot]) -> list[Snapshot]:
    """At most RESTART_POINTS of `points`, in order: the first, the latest, and some spread between.

    A later prompt may share any part of this one; most often what all of a program's begin with.
    """
    kept = list(points)
    while len(kept) > RESTART_POINTS:
        old = kept[:-LATEST]
        starts = [0, *(point.length for point in old[:-1])]
        ends = [*(point.length for point in old[1:]), kept[-LATEST].length]
        gaps = [end - start for start, end in zip(starts, ends, strict=True)]
        del kept[1 + gaps[1:].index(min(gaps[1:]))]
    return kept
