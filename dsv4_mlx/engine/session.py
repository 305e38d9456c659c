"""One token sequence and the model's memory of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.chat.prompt import Markers
from dsv4_mlx.engine.cuts import cuts
from dsv4_mlx.errors import DoesNotFit, InputError, ModelOutputError
from dsv4_mlx.model.state import ModelState, Snapshot
from dsv4_mlx.model.transformer import Transformer

RESTART_POINTS = 4  # snapshots kept, the latest cuts; 18 MB each at full size
Logits = npt.NDArray[np.float32]


class Session:
    """Hand it the whole token sequence; it computes what it has not seen. Not for use by two threads."""

    def __init__(self, model: Transformer, context: int, markers: Markers) -> None:
        self.model, self.context, self.markers = model, context, markers
        self.stop_ids = frozenset({markers.end})
        self.tokens: list[int] = []
        self.reused = 0  # tokens of the last `sync` that needed no computation
        self._state: ModelState = model.new_state()
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
        """Append one token; float32 logits [V] after it."""
        if len(self.tokens) >= self.context:
            raise DoesNotFit(f"the context of {self.context} tokens is full")
        return self._step([token])

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens (at most model.state.SLACK)."""
        self._state.take_back(count)
        self._cut_to(len(self.tokens) - count)
        self._logits = None

    def fork(self) -> Session:
        """An independent session that has seen the same tokens."""
        twin = Session(self.model, self.context, self.markers)
        twin.tokens, twin._logits = list(self.tokens), self._logits
        twin._state, twin._restart = self._state.fork(), list(self._restart)
        return twin

    def _step(self, tokens: list[int]) -> Logits:
        logits = self.model(mx.array([tokens], mx.int32), self._state, last=True)
        mx.eval(logits, *self._state.arrays())
        self.tokens += tokens
        row = np.array(logits[0, -1])
        check_logits(row, len(self.tokens) - 1)
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
        else:
            self._state = self.model.new_state()
        self._cut_to(self._state.length)
        self._logits = None
        return len(self.tokens)

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
