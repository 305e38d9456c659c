"""Answers the decode loop from one session: the plain way, one row and one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from dsv4_mlx.engine.chooser import PromptScores
from dsv4_mlx.engine.decode import Drawn, PrefillProgress, Rows
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.tokenizer.template import Markers


class TokenSequence(Protocol):
    """What the plain answerer needs of a session; as in Session."""

    tokens: list[int]
    markers: Markers
    context: int

    @property
    def vocabulary(self) -> int: ...

    @property
    def row(self) -> mx.array: ...

    def prefill(
        self,
        tokens: Sequence[int],
        chunks_per_step: Callable[[], int | None] = ...,
        check_cancelled: Callable[[], None] = ...,
        scores: PromptScores | None = ...,
    ) -> Iterator[PrefillProgress]: ...

    def feed(self, token: int) -> mx.array: ...

    def prepare(self, id: mx.array) -> bool: ...

    def settle(self, *beside: mx.array) -> bool: ...


@dataclass(frozen=True)
class SessionRows:
    """Answers the decode loop the plain way: one session, one row, one token at a time."""

    session: TokenSequence
    chunks_per_step: Callable[[], int | None] = lambda: None  # this and the next: as in Session.prefill
    check_cancelled: Callable[[], None] = lambda: None

    def take_in(self, rows: Rows) -> Generator[PrefillProgress, None, None]:
        """Their tokens, the last of which may not be settled. Raises as Session.prefill and Session.feed."""
        if rows.position == 0:
            given = (self.chunks_per_step, self.check_cancelled, rows.scores)
            yield from self.session.prefill(rows.tokens, *given)
            return
        gone_on = len(self.session.tokens) - rows.position  # by the token that was begun last time
        for token in rows.tokens[gone_on:]:
            self.session.settle()
            self.session.feed(token)

    def __call__(self, rows: Rows) -> Generator[PrefillProgress, None, Drawn]:
        """Their tokens, and the one that follows. Raises as `take_in`, Session.settle and Chooser.begin.

        What a draw needs of the host is made while the device works, and so is the step after it. That is
        begun as soon as its token is known, before anyone is told of the token: the device does not wait for
        what is done with it. The session may so be a token further than what it was asked for.
        """
        yield from self.take_in(rows)
        if not rows.count:
            return Drawn(())
        draw = rows.choose.begin(self.session.row)
        mx.async_eval(draw.arrays)  # type: ignore[no-untyped-call]
        rows.choose.prepare()
        more = rows.count > 1 and len(self.session.tokens) + 1 < self.session.context
        ahead = more and self.session.prepare(draw.id)
        while self.session.settle(*draw.arrays):
            ahead, draw = False, rows.choose.begin(self.session.row)
        drawn = rows.choose.finish(draw)
        if ahead and not rows.choose.over:
            self.session.feed(drawn[0])
        return Drawn((drawn,))


def sample(session: TokenSequence, sampler: Sampler) -> int:
    """The token that follows, without an answer around it. Raises as Session.settle."""
    id = sampler(session.row, session.tokens)
    mx.async_eval(id)  # type: ignore[no-untyped-call]
    sampler.prepare(len(session.tokens) + 1)
    while session.settle(id):
        id = sampler(session.row, session.tokens)
    return int(id)
