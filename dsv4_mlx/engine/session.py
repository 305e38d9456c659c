"""One token sequence and the model's memory of it.

A session only goes on: `sync` and `advance` add tokens. Three ways lead back.

    take_back(k)          the last k tokens, at most SLACK (8), are forgotten; costs nothing
    snapshot, restore     any number of tokens; a snapshot costs a copy of the rings (18 MB at full size)
    fork                  a second session from here; whichever writes first copies the rows
    fork_at(tokens)       a second session, of what can be kept of this one for another sequence

A snapshot leaves the compressed rows where they are, in the session. It holds while the session writes
beyond it only; once the session has gone back before it and written something else, `restore` refuses.
To keep two branches at once, fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from dsv4_mlx.engine import buffer_cache
from dsv4_mlx.engine.chooser import PromptScores
from dsv4_mlx.engine.chunking import chunk_ends, common_prefix, spread_restart_points
from dsv4_mlx.engine.decode import PrefillProgress
from dsv4_mlx.engine.language_model import (
    LanguageModel,
    Logits,
    Origin,
    check_magnitudes,
    without_failing_kernels,
)
from dsv4_mlx.engine.prompt_room import check_tokens
from dsv4_mlx.errors import DoesNotFit, InputError, ModelOutputError, Progress, UsageError
from dsv4_mlx.model.state import GROWTH, ModelState, Snapshot
from dsv4_mlx.model.step import PreparedStep
from dsv4_mlx.tokenizer.template import Markers


@dataclass(frozen=True, eq=False)
class SessionSnapshot:
    """A point of a session: the tokens so far, the logits after them, and what is needed to return."""

    tokens: tuple[int, ...]
    point: Snapshot
    restart: tuple[Snapshot, ...]
    row: mx.array | None


class Session:
    """Hand it the whole token sequence; it computes what it has not seen. Not for use by two threads.

    What changes the cache (the state and the tokens it holds) says so; everything else leaves it as it is.
    Logits are copies of their own: valid for ever; `row` are the same on the device.
    `growth`: tokens by which the state's row buffers grow.
    """

    def __init__(self, model: LanguageModel, context: int, markers: Markers, growth: int = GROWTH) -> None:
        self.model, self.context, self.markers, self.growth = model, context, markers, growth
        self.tokens: list[int] = []
        self.cached = 0  # tokens of the last `sync` that needed no computation
        self._state: ModelState = model.new_state(growth=growth)
        self._restart: list[Snapshot] = []
        self._row: mx.array | None = None
        self._ahead: PreparedStep | None = None
        self._unchecked: mx.array | None = None  # the row's largest magnitude as bits, until it is looked at
        self._origin = Origin()

    @property
    def pure(self) -> bool:
        """Whether the model's present ops have computed all of it; else it is neither saved nor shared."""
        return self._origin.all_by(self.model.ops)

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self.model.config.vocab_size

    @property
    def capacity(self) -> int:
        """Tokens that its row buffers hold before they grow."""
        return self._state.capacity

    def sync(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        """Make `tokens` the sequence; float32 logits [V] after its last token. Changes the cache.

        What the session has in common with it is kept: all of it where the sequence is only longer, else
        up to the last restart point, which lies at a cut. Raises as check_tokens.
        """
        for step in self.prefill(tokens):
            if progress is not None and step.done:
                progress(step.done, step.total)
        return self.logits

    def prefill(
        self,
        tokens: Sequence[int],
        chunks_per_step: Callable[[], int | None] = lambda: None,
        check_cancelled: Callable[[], None] = lambda: None,
        scores: PromptScores | None = None,
    ) -> Iterator[PrefillProgress]:
        """`sync` step by step: yields how far it is, first with 0 done, then at cuts. Changes the cache, with
        the first yield and with each step; nothing else may change it before the end.

        A step is as many chunks as the model takes at once; `chunks_per_step`, asked before each, may allow
        fewer. The caller may stop after any: the session is then as far as it got, and a later `sync` goes on
        from there, cut alike. `check_cancelled` is called between layers: what it raises comes out here, and
        the session is where the step began. At the end `logits` are those of the last token. `scores` is
        shown every row: nothing counts as known then.
        """
        tokens = [int(token) for token in tokens]
        check_tokens(tokens, self.vocabulary, self.context)
        with suppress(ModelOutputError):  # of a token that nobody asked for any more
            self.settle()
        start = self.cached = self._keep(tokens if scores is None else [])
        marks = chunk_ends(tokens, self.markers)
        yield PrefillProgress(0, len(tokens) - start, start)
        if start == len(tokens):
            return  # all of it was known
        ends = [*(cut for cut in marks if start < cut < len(tokens)), len(tokens)]
        while ends:
            most, allowed = self.model.chunks_per_step, chunks_per_step()
            count = most if allowed is None else min(allowed, most)
            group, ends = ends[:count], ends[count:]
            starts = [len(self.tokens), *group]
            chunks = [tokens[a:b] for a, b in zip(starts, group, strict=False)]
            points = self._step(chunks, check_cancelled, scores)
            self.settle()
            end = group[-1]
            if end < len(tokens) or (marks and end == marks[-1]):
                points = [*points, self._state.snapshot()]
            self._restart = spread_restart_points([*self._restart, *points])
            yield PrefillProgress(end - start, len(tokens) - start, start, scores.take() if scores else ())

    @property
    def logits(self) -> Logits:
        """float32 [V] after the last token; read-only. Raises UsageError when empty, or after `take_back`.

        The array stays valid when the session goes on; this property is then another's.
        """
        row = self.row
        self.settle()
        logits = np.array(row)
        logits.setflags(write=False)
        return logits

    @property
    def row(self) -> mx.array:
        """`logits` on the device, which may not be computed yet, nor checked: `settle` does both."""
        if self._row is None:
            raise UsageError("there are no logits here", next="sync or advance first")
        return self._row

    def cached_prefix(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` need not be computed where this is shared; true until the cache changes."""
        return self._keepable(tokens)[0] if self.pure else 0

    def fork_at(self, tokens: Sequence[int]) -> Session:
        """An independent session that holds what this one could keep of `tokens`, and no rows beyond it.

        This one's cache is not changed: rows are copied when either writes.
        """
        twin = self.fork()
        twin._keep(list(tokens))
        twin._state.shrink()
        return twin

    def advance(self, token: int) -> Logits:
        """Append one token; float32 logits [V] after it. Changes the cache. Raises InputError, DoesNotFit."""
        self.feed(token)
        return self.logits

    def feed(self, token: int) -> mx.array:
        """Append one token, and have the device begin with it: the `row` after it. Changes the cache.

        `settle` before the next. Raises InputError, DoesNotFit.
        """
        if not 0 <= token < self.model.config.vocab_size:
            raise InputError(f"token {token} is not an id from 0 to {self.model.config.vocab_size - 1}")
        if len(self.tokens) >= self.context:
            raise DoesNotFit(f"the context of {self.context} tokens is full")
        self._step([[token]])
        return self.row

    def prepare(self, id: mx.array) -> bool:
        """Build the step of a token that the device is choosing, int32 []; `feed` of it then only begins it.
        In vain where anything else comes first. Whether it could be built.
        """
        self._ahead = None
        if len(self.tokens) < self.context:
            self._ahead = self.model.prepare(id.reshape(1, 1), self._state)
        return self._ahead is not None

    def settle(self, *beside: mx.array) -> bool:
        """Wait for what was begun and for `beside`, arrays made of the `row`: the row is a row of numbers.

        Where a kernel fails, the row is computed again without it: True, and `beside` are of no use.
        Raises ModelOutputError for what are no numbers; nothing is known then.
        """
        known, begun = self.tokens, self._unchecked is not None
        try:
            self._wait(beside)
        except (RuntimeError, ValueError) as error:
            if not begun or self.model.ops.launcher is None:
                raise
            self._repair(error, known[:-1], [known[-1:]])
            return True
        return False

    def _wait(self, beside: Sequence[mx.array] = ()) -> None:
        largest, self._unchecked = self._unchecked, None
        try:
            mx.eval(beside, [] if largest is None else [largest])
            if largest is not None:
                check_magnitudes(np.int32(int(largest)).view(np.float32), len(self.tokens) - 1)
        except BaseException:
            self._forget()
            raise

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens. Changes the cache, and leaves no logits.

        Raises UsageError beyond model.state.SLACK (8).
        """
        if not 0 <= count <= self._state.retractable:
            raise UsageError(
                f"can't take back {count} tokens, expected 0 to {self._state.retractable} here",
                next="take a snapshot and restore it: that goes back any distance",
            )
        if count:
            self._state.take_back(count)
            self._cut_to(len(self.tokens) - count)

    def snapshot(self) -> SessionSnapshot:
        """Remember this point for `restore`: valid until the session has gone back before it and written."""
        self.settle()
        return SessionSnapshot(tuple(self.tokens), self._state.snapshot(), tuple(self._restart), self._row)

    def holds(self, snapshot: SessionSnapshot) -> bool:
        """Whether `restore(snapshot)` would be accepted; true until the cache changes."""
        return self._state.holds(snapshot.point)

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Return to a snapshot of this session, or of the one it was forked from, taken before the fork.
        Changes the cache.

        Raises UsageError if the session has since gone back before it and continued from there, or if it is
        another session's: the rows it stands on are not here.
        """
        if not self.holds(snapshot):
            raise UsageError(
                f"the snapshot of {len(snapshot.tokens)} tokens can't be restored: this session has written "
                "over what it stands on, or never held it",
                next="fork the session before it goes back, to keep both branches",
            )
        self._state.restore(snapshot.point)
        self.tokens = list(snapshot.tokens)
        self._restart = list(snapshot.restart)
        self._row, self._unchecked = snapshot.row, None

    def adopt(self, tokens: list[int], state: ModelState) -> None:
        """Become the sequence `tokens`, after which `state` is. Replaces the cache: `state` is the session's
        from here on. There are no logits until more is added.
        """
        self._state, self.tokens, self._row, self._unchecked = state, tokens, None, None
        self._restart, self._origin = [state.snapshot()], Origin(self.model.ops)

    def fork(self) -> Session:
        """An independent session that has seen the same tokens: neither's changes reach the other."""
        self.settle()
        twin = Session(self.model, self.context, self.markers, self.growth)
        twin.cached, twin.tokens, twin._row = self.cached, list(self.tokens), self._row
        twin._state, twin._restart = self._state.fork(), list(self._restart)
        twin._origin = self._origin
        return twin

    def _step(
        self,
        chunks: Sequence[list[int]],
        check_cancelled: Callable[[], None] = lambda: None,
        scores: PromptScores | None = None,
    ) -> list[Snapshot]:
        """Take consecutive chunks in; snapshots after each but the last. `settle` is to follow."""
        before = self.tokens
        try:
            return self._take_in(chunks, check_cancelled, scores)
        except (RuntimeError, ValueError) as error:
            if self.tokens is before or self.model.ops.launcher is None:
                raise  # left as it was, or no kernel's fault
            return self._repair(error, before, chunks, check_cancelled, scores)

    def _repair(
        self,
        error: Exception,
        known: list[int],
        chunks: Sequence[list[int]],
        check_cancelled: Callable[[], None] = lambda: None,
        scores: PromptScores | None = None,
    ) -> list[Snapshot]:
        """After a step that failed, all of the sequence again, without the kernel whose fault it was."""
        cached = self.cached

        def again() -> list[Snapshot]:
            for _ in self.prefill(known) if known else ():
                pass
            points = self._take_in(chunks, check_cancelled, scores)
            self._wait()
            return points

        points, mixed = without_failing_kernels(self.model, error, again)
        self.cached, self._origin = cached, Origin(self.model.ops, mixed)
        return points

    def _take_in(
        self, chunks: Sequence[list[int]], check_cancelled: Callable[[], None], scores: PromptScores | None
    ) -> list[Snapshot]:
        decoding = len(chunks) == 1 and len(chunks[0]) == 1 and scores is None
        start = None if decoding else self._state.snapshot()
        left: BaseException | None = None

        def between() -> None:
            nonlocal left
            try:
                check_cancelled()
            except BaseException as error:
                left = error
                raise

        try:
            buffer_cache.step(sum(len(chunk) for chunk in chunks))
            arrays = [mx.array([chunk], mx.int32) for chunk in chunks]
            # Not within a token: it is soon done, and leaving it would cost all that is known.
            streams: list[mx.array] = []
            points: list[Snapshot] = []
            if start is None:
                logits = self._next(chunks[0][0], arrays[0])
            else:
                streams, points = self.model.streams_of(arrays, self._state, between)
                logits = self.model.logits(streams[-1], last=True)
            row = logits.reshape(-1)
            largest = mx.max(row.view(mx.int32) & 0x7FFFFFFF)  # in integers NaN is larger than infinity
            begun = [row, largest, *self._state.arrays(), *(point.rings for point in points)]
            if decoding:
                mx.async_eval(begun)  # type: ignore[no-untyped-call]
            else:
                mx.eval(begun)
            del begun
            if scores is not None:
                scores.add(streams, self.model.logits)
        except BaseException as error:
            # Interrupted, some layers have the chunk and some have not: nothing of it can be trusted, unless
            # it was in between, where every layer's memory of before is whole.
            if start is not None and error is left:
                self._state.abandon(start)
            else:
                self._forget()
            raise
        self.tokens += [token for chunk in chunks for token in chunk]
        self._row, self._unchecked, self._origin = row, largest, self._origin.then(self.model.ops)
        return points

    def _next(self, token: int, tokens: mx.array) -> mx.array:  # [1, 1] -> logits [1, 1, V]
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.follows(self._state) and int(ahead.tokens) == token:
            return ahead.take()
        return self.model.step(tokens, self._state)

    def _keepable(self, tokens: Sequence[int]) -> tuple[int, Snapshot | None]:
        """How many of `tokens` can be kept, and the point to go back to for it; None to stay, or for 0."""
        shared = common_prefix(self.tokens, tokens)
        if shared == len(self.tokens) and (shared < len(tokens) or self._row is not None):
            return shared, None
        usable = [point for point in self._restart if point.length <= shared and point.length < len(tokens)]
        return (usable[-1].length, usable[-1]) if usable else (0, None)

    def _keep(self, tokens: list[int]) -> int:
        """Go back to the last point that `tokens` continues from; how many tokens that keeps."""
        kept, point = self._keepable(tokens)
        if point is not None:
            self._state.restore(point)
            self._cut_to(kept)
        elif kept < len(self.tokens):
            self._forget()
        return kept

    def _forget(self) -> None:
        self._state = self.model.new_state(growth=self.growth)
        self.tokens, self._restart, self._row, self._unchecked = [], [], None, None
        self._ahead, self._origin = None, Origin()

    def _cut_to(self, length: int) -> None:
        self._row = self._unchecked = None
        del self.tokens[length:]
        self._restart = [point for point in self._restart if point.length <= length]
