"""A decode step that is traced once and replayed: Python's share of a token is then its numbers.

A trace is a pure function (token, numbers, buffers) -> (logits, buffers), compiled by MLX. What follows from
the position is an input: places in rings, counts, rotations. Buffers are read whole, with a count of the rows
that are there. What is left of the position is the kind of the step: which compressed rows close, whether the
indexer scores, and the capacity of the buffers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakMethod

import mlx.core as mx
import numpy as np

from dsv4_mlx.config import LayerKind, ModelConfig
from dsv4_mlx.model.chunk import ChunkPlan, ChunkPlanner, Emission, Rotation, ring_sight
from dsv4_mlx.model.state import ModelState, group_places
from dsv4_mlx.ops.table import Ops

HELD = 6  # traces, of about 10 MB each at full size: all kinds of one capacity

Traced = Callable[[list[mx.array]], list[mx.array]]
Step = Callable[[mx.array, ModelState, ChunkPlan], mx.array]


class StepKind(NamedTuple):
    """What of a step its trace fixes: which kinds of layers close a row, whether rows are scored, tokens
    that the buffers hold, and the ops."""

    closes: tuple[bool, ...]
    scored: bool
    capacity: int
    ops: Ops


class StepNumbers:
    """The inputs of a step that follow from its position, and the plan that they make inside a trace."""

    def __init__(self, config: ModelConfig, planner: ChunkPlanner) -> None:
        self.planner, self.topk = planner, config.index_topk
        ring = planner.ring
        sights = [ring_sight(at, 1, config.window, ring)[0] for at in range(2 * ring)]
        self._masks = np.where(np.stack(sights), np.float32(0), np.float32(-np.inf))

    def kind(self, start: int, capacity: int, ops: Ops) -> StepKind | None:
        """Of the token at position `start`; None for those that are not traced: the first row of a kind
        whose rows overlap has no row before it.
        """
        kinds = self.planner.kinds
        if any(kind.indexed and start + 1 == kind.ratio for kind in kinds):
            return None
        closes = tuple((start + 1) % kind.ratio == 0 for kind in kinds)
        return StepKind(closes, self._scored(start), capacity, ops)

    def beside(self) -> list[int]:
        """Positions of one step of every kind that there is, but for whether rows are scored."""
        return [0, *(2 * one.ratio - 1 for one in self.planner.kinds)]

    def arrays(self, start: int, kind: StepKind) -> list[mx.array]:
        """What `plan` takes, of position `start`: rotations, mask [1, S] of the ring, counts [1]."""
        ring, planner = self.planner.ring, self.planner
        plain, compressed = planner.rotations(start, 1)
        mask = self._masks[start if start < ring else ring + start % ring]
        found = [plain.forward, plain.inverse, compressed.forward, compressed.inverse]
        found += [mx.array(mask[None]), _index(start % ring), _number(min(start + 1, ring))]
        for one, closes in zip(planner.kinds, kind.closes, strict=True):
            places, row = group_places(one), start // one.ratio
            found += [_number(start % one.ratio), _index(start % places), _number((start + 1) // one.ratio)]
            if closes:
                pooled = (row - one.indexed) * one.ratio
                found += [planner.emitted(one, row, row + 1), _index(row), _number(pooled % places)]
        return found

    def plan(self, kind: StepKind, arrays: Iterator[mx.array]) -> ChunkPlan:
        """The plan of a step of this kind at any position: what `arrays` gives, counts [1], mask [1, S]."""
        plain, compressed = (Rotation(next(arrays), next(arrays)) for _ in range(2))
        mask, place, count = (next(arrays) for _ in range(3))
        emissions = {
            one: self._emission(one, closes, kind, arrays)
            for one, closes in zip(self.planner.kinds, kind.closes, strict=True)
        }
        return ChunkPlan(
            start=0, rows=1, in_ring=True, place=place, filled=self.planner.ring, count=count, history=0,
            window=mask, plain=plain, compressed=compressed, emissions=emissions,
        )  # fmt: skip

    def _emission(
        self, one: LayerKind, closes: bool, kind: StepKind, arrays: Iterator[mx.array]
    ) -> Emission:  # places and counts [1] each
        phase, place, count = (next(arrays) for _ in range(3))
        table, row, offset = (next(arrays) for _ in range(3)) if closes else (None, 0, 0)
        rows = kind.capacity // one.ratio
        return Emission(
            start=row, stop=rows if kind.scored or not one.indexed else min(rows, self.topk), count=count,
            phase=phase, place=place, pool_from=0, offset=offset, in_ring=True, is_first=False, table=table,
            mask=None, visible=None,
        )  # fmt: skip

    def _scored(self, start: int) -> bool:
        return any(kind.indexed and (start + 1) // kind.ratio > self.topk for kind in self.planner.kinds)


class PreparedStep:
    """A step whose graph is there, and of which nothing is computed or stored."""

    def __init__(
        self, tokens: mx.array, logits: mx.array, left: list[mx.array], state: ModelState
    ) -> None:  # [1, 1], [1, 1, V], buffers [1, S or N, K]
        self.tokens, self._logits, self._left, self._state = tokens, logits, left, state
        self._length, self._first = state.length, state.layers[0].window.buffer

    def follows(self, state: ModelState) -> bool:
        """Whether it stands on what `state` is now: every write replaces the window's buffer."""
        same = state is self._state and state.length == self._length
        return same and state.layers[0].window.buffer is self._first

    def take(self) -> mx.array:
        """Logits [1, 1, V]; the state takes the token in. Once."""
        _put(self._state, self._left)
        self._state.advance(1)
        self._left.clear()  # or the next write would copy what is held here
        del self._first
        return self._logits


class CompiledSteps:
    """Traces of one model, by kind. For one thread: MLX keeps what it compiled by thread.

    `step(tokens [1, 1], state, plan)` gives logits and changes the state that it is given. It is held weakly:
    a trace holds the weights that the step has read, as constants, and the model holds its traces.
    """

    def __init__(self, config: ModelConfig, planner: ChunkPlanner, step: Step) -> None:
        self._numbers, self._layers = StepNumbers(config, planner), config.layers
        self._step = WeakMethod(step)
        self._traces: OrderedDict[StepKind, Traced] = OrderedDict()
        self.made = 0  # traces, since the model is there

    def __call__(self, tokens: mx.array, state: ModelState, ops: Ops) -> PreparedStep | None:
        """The step of tokens int32 [1, 1], which may not be computed yet, after `state`, which has room.

        Changes nothing. None: a step that is not traced.
        """
        kind = self._numbers.kind(state.length, state.capacity, ops)
        if kind is None:
            return None
        if kind not in self._traces:
            self._make(kind, tokens, state)
        self._traces.move_to_end(kind)
        logits, *left = self._traces[kind](self._arguments(kind, state.length, tokens, state))
        return PreparedStep(tokens, logits, left, state)

    def _make(self, kind: StepKind, tokens: mx.array, state: ModelState) -> None:
        """The trace of this kind, and at once those of all kinds that the answer may come to before long."""
        for start in (state.length, *self._numbers.beside()):
            one = self._numbers.kind(start, state.capacity, kind.ops)
            if one is None:
                continue
            one = one._replace(scored=kind.scored)
            if one not in self._traces:
                traced = self._traced(one, state)
                traced(self._arguments(one, start, tokens, state))
                self._traces[one] = traced
                self.made += 1
        while len(self._traces) > HELD:
            self._traces.popitem(last=False)

    def _traced(self, kind: StepKind, state: ModelState) -> Traced:
        """Not traced before its first call. It keeps nothing of `state`, whose layers it is for."""
        step, numbers, scratch = self._step, self._numbers, state.fork()
        scratch.let_go()

        def function(arrays: list[mx.array]) -> list[mx.array]:
            through = step()
            if through is None:
                raise RuntimeError("the model of this trace is gone")
            given = iter(arrays)
            tokens, plan = next(given), numbers.plan(kind, given)
            try:
                _put(scratch, given)
                return [through(tokens, scratch, plan), *self._buffers(scratch)]
            finally:
                scratch.let_go()

        traced: Traced = mx.compile(function)
        return traced

    def _arguments(
        self, kind: StepKind, start: int, tokens: mx.array, state: ModelState
    ) -> list[mx.array]:  # tokens [1, 1]
        return [tokens, *self._numbers.arrays(start, kind), *self._buffers(state)]

    def _buffers(self, state: ModelState) -> list[mx.array]:
        return [b.buffer for layer in state.layers[: self._layers] for b in layer.buffers()]


def _put(state: ModelState, arrays: Iterable[mx.array]) -> None:
    """Buffers [1, S or N, K] into the first layers: draft blocks, which come after them, keep theirs."""
    buffers = (buffer for layer in state.layers for buffer in layer.buffers())
    for array, buffer in zip(arrays, buffers, strict=False):
        buffer.buffer = array


@lru_cache(maxsize=1024)
def _number(value: int) -> mx.array:  # uint32 [1]
    return mx.array([value], mx.uint32)


@lru_cache(maxsize=1024)
def _index(value: int) -> mx.array:  # uint32 [1, 1, 1]
    return mx.array([[[value]]], mx.uint32)
