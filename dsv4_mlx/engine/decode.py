"""The decode loop as a conversation: it asks for rows and is given tokens; events come out.

    PrefillProgress*  Token*  Finished       in this order; whatever happens, one Finished, and it is the last

A PrefillProgress with done == total comes once: the prompt is in. Whoever answers the requests may compute
rows of several sessions together, draft tokens and verify them, or run ahead: the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from dsv4_mlx.engine.chooser import Chooser, PromptScores, Score, Top

Ended = Literal["stop", "length"]
Reason = Literal[Ended, "cancelled", "error"]


@dataclass(frozen=True)
class PrefillProgress:
    """`done` of `total` tokens of the prompt are computed; `cached` more were known before. `scores`, where
    asked for: of those computed since the last."""

    done: int
    total: int
    cached: int
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Token:
    """A token of the answer. Where asked for: its natural log probability, of the model's own distribution
    (before bias, penalties, constraint and temperature), and the likeliest (id, log probability), best first.
    """

    id: int
    logprob: float | None = None
    top: Top = ()


@dataclass(frozen=True)
class Finished:
    """`stop`: the model ended its turn (that token is not emitted). `length`: max_tokens or the context.

    `error` says why for reason "error": a Dsv4Error for what can be expected, anything else is a bug.
    """

    reason: Reason
    error: BaseException | None = None


Event = PrefillProgress | Token | Finished


@dataclass(frozen=True)
class Rows:
    """A request: take `tokens` in at `position`, and choose up to `count` tokens that follow; 0 for none.

    At position 0 they are the prompt, of which a session may hold something already. Elsewhere they follow
    what was given before; who has gone further goes back to `position` first. `scores` takes the prompt's as
    they come.
    """

    tokens: Sequence[int]
    position: int
    count: int
    choose: Chooser
    scores: PromptScores | None = None


@dataclass(frozen=True)
class Drawn:
    """The answer: 1 to `count` tokens in order, none for a count of 0; all by `choose`, which a stop ends.

    Each with how likely it was, as `choose` gave both. The last token has not been taken in, the others have;
    rows of refused drafts, and of what was run ahead of a stop, are taken back.
    """

    tokens: Sequence[tuple[int, Score | None]]


def decode(
    choose: Chooser, room: int, scores: PromptScores | None = None
) -> Generator[Rows | Token, Drawn | None, Ended]:
    """The one loop: yields requests, each to be sent its answer, and tokens; returns what ended it.

    `room`: tokens of the answer at most. It may be left at any yield. The stopping token is not yielded.
    """
    rows = Rows(tuple(choose.tokens), 0, room, choose, scores)
    while True:
        drawn = yield rows
        if drawn is None:
            raise RuntimeError("a request for rows wants an answer")
        for token, score in drawn.tokens:
            if token in choose.stops:
                return "stop"
            yield Token(token) if score is None else Token(token, *score)
        room -= len(drawn.tokens)
        if not rows.count:
            return "length"
        rows = Rows(choose.tokens[-1:], len(choose.tokens) - 1, room, choose)
