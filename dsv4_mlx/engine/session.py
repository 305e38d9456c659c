"""One token sequence and the model's memory of it.

A session only goes on: `sync` and `advance` add tokens. Three ways lead back.

    take_back(k)          the last k tokens, at most SLACK (8), are forgotten; costs nothing
    snapshot, restore     any number of tokens; a snapshot costs a copy of the rings (18 MB at full size)
    fork                  a second session from here; whichever writes first copies the rows

A snapshot leaves the compressed rows where they are, in the session. It holds while the session writes
beyond it only; once the session has gone back before it and written something else, `restore` refuses.
To keep two branches at once, fork.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.chat.prompt import Markers
from dsv4_mlx.engine.cuts import cuts
from dsv4_mlx.errors import DoesNotFit, InputError, ModelOutputError, UsageError
from dsv4_mlx.model.state import GROWTH, ModelState, Snapshot
from dsv4_mlx.model.transformer import Transformer

RESTART_POINTS = 4  # snapshots kept, the latest cuts; 18 MB each at full size
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SessionSnapshot:
    """A point of a session: the tokens so far, the logits after them, and what is needed to return."""

    tokens: tuple[int, ...]
    point: Snapshot
    restart: tuple[Snapshot, ...]
    logits: Logits | None


class Session:
    """Hand it the whole token sequence; it computes what it has not seen. Not for use by two threads.

    `growth`: tokens by which the state's row buffers grow.
    """

    def __init__(self, model: Transformer, context: int, markers: Markers, growth: int = GROWTH) -> None:
        self.model, self.context, self.markers, self.growth = model, context, markers, growth
        self.stop_ids = frozenset({markers.end})
        self.tokens: list[int] = []
        self.reused = 0  # tokens of the last `sync` that needed no computation
        self._state: ModelState = model.new_state(growth=growth)
        self._restart: list[Snapshot] = []
        self._logits: Logits | None = None

    def room_after(self, tokens: Sequence[int]) -> int:
        """Tokens that can follow `tokens`."""
        return max(0, self.context - len(tokens))

    def sync(self, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None) -> Logits:
        """Make `tokens` the sequence; float32 logits [V] after its last token.

        What the session has in common with it is kept: all of it where the sequence is only longer, else
        up to the last restart point, which lies at a cut. Raises as check_tokens.
        """
        tokens = [int(token) for token in tokens]
        check_tokens(tokens, self.model.config.vocab_size, self.context)
        self.reused = self._keep(tokens)
        if self.reused == len(tokens) and self._logits is not None:
            return self._logits
        marks = cuts(tokens, self.markers)
        start = len(self.tokens)
        for end in [*(cut for cut in marks if start < cut < len(tokens)), len(tokens)]:
            logits = self._step(tokens[len(self.tokens) : end])
            if end in marks:
                self._restart = [*self._restart, self._state.snapshot()][-RESTART_POINTS:]
            if progress is not None:
                progress(end - start, len(tokens) - start)
        return logits

    def advance(self, token: int) -> Logits:
        """Append one token; float32 logits [V] after it. Raises InputError, DoesNotFit."""
        if not 0 <= token < self.model.config.vocab_size:
            raise InputError(f"token {token} is not an id from 0 to {self.model.config.vocab_size - 1}")
        if len(self.tokens) >= self.context:
            raise DoesNotFit(f"the context of {self.context} tokens is full")
        return self._step([token])

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens. Raises UsageError beyond model.state.SLACK (8)."""
        if not 0 <= count <= self._state.retractable:
            raise UsageError(
                f"can't take back {count} tokens, expected 0 to {self._state.retractable} here",
                next="take a snapshot and restore it: that goes back any distance",
            )
        if count:
            self._state.take_back(count)
            self._cut_to(len(self.tokens) - count)
            self._logits = None

    def snapshot(self) -> SessionSnapshot:
        """Remember this point for `restore`."""
        return SessionSnapshot(tuple(self.tokens), self._state.snapshot(), tuple(self._restart), self._logits)

    def holds(self, snapshot: SessionSnapshot) -> bool:
        """Whether `restore(snapshot)` would be accepted."""
        return self._state.holds(snapshot.point)

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Return to a snapshot of this session, or of the one it was forked from, taken before the fork.

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
        self._logits = snapshot.logits

    def fork(self) -> Session:
        """An independent session that has seen the same tokens."""
        twin = Session(self.model, self.context, self.markers, self.growth)
        twin.stop_ids, twin.reused = self.stop_ids, self.reused
        twin.tokens, twin._logits = list(self.tokens), self._logits
        twin._state, twin._restart = self._state.fork(), list(self._restart)
        return twin

    def _step(self, tokens: list[int]) -> Logits:
        try:
            logits = self.model(mx.array([tokens], mx.int32), self._state, last=True)
            mx.eval(logits, *self._state.arrays())
            row = np.array(logits[0, -1])
            check_logits(row, self._state.length - 1)
        except BaseException:
            # Interrupted, some layers have the chunk and some have not: nothing of it can be trusted.
            self._forget()
            raise
        row.setflags(write=False)  # kept here and in snapshots: a caller must not change it
        self.tokens += tokens
        self._logits = row
        return row

    def _keep(self, tokens: list[int]) -> int:
        """Go back to the last point that `tokens` continues from; how many tokens that keeps."""
        shared = common_prefix(self.tokens, tokens)
        complete = shared == len(tokens) and self._logits is not None
        if shared == len(self.tokens) and (shared < len(tokens) or complete):
            return shared
        usable = [point for point in self._restart if point.length <= shared and point.length < len(tokens)]
        if usable:
            self._state.restore(usable[-1])
            self._cut_to(self._state.length)
        else:
            self._forget()
        self._logits = None
        return len(self.tokens)

    def _forget(self) -> None:
        self._state = self.model.new_state(growth=self.growth)
        self.tokens, self._restart, self._logits = [], [], None

    def _cut_to(self, length: int) -> None:
        del self.tokens[length:]
        self._restart = [point for point in self._restart if point.length <= length]


def check_tokens(tokens: Sequence[int], vocabulary: int, context: int) -> None:
    """Raises InputError for no tokens or ids outside the vocabulary, DoesNotFit for too many."""
    if not tokens:
        raise InputError("there are no tokens", next="give at least one")
    wrong = next((i for i, token in enumerate(tokens) if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InputError(f"token {wrong} is {tokens[wrong]}, expected an id from 0 to {vocabulary - 1}")
    if len(tokens) > context:
        raise DoesNotFit(
            f"the prompt has {len(tokens)} tokens, the context holds {context}",
            next="shorten the prompt, or give a larger --context",
        )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def check_logits(row: Logits, position: int) -> None:
    """Metal out of memory is silent and shows as NaN, infinity or zeros. Raises ModelOutputError."""
    if not np.isfinite(row).all() or not row.any(axis=-1).all():
        raise ModelOutputError(
            f"the logits after token {position} are not numbers or all zero: the device failed",
            next="use a smaller --context, or close other programs; if it happens again, report it",
        )
