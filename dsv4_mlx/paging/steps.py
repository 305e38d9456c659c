"""How a chunk goes through paged layers: reading at every layer, or guessing that nothing must be read.

*Read per layer*: each learned layer's ids come to the host before its experts run. *Optimistic*: nothing
comes to the host inside the step; every layer computes with what is loaded and says whether that was enough.
If a layer lacked an expert, the step goes on from that layer's input as read per layer: the state's writes
are addressed by position, so what the guess wrote is written again. Same bits either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from dsv4_mlx.model.block import Block
from dsv4_mlx.model.plan import Plan
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import layer_loop
from dsv4_mlx.paging.experts import FEW_ROWS, Guess, PagedExperts

GUESS_BELOW, READ_ABOVE = 0.25, 0.75  # layers per token that lack an expert
MEMORY = 0.9  # per token: about the last ten count


class Form:
    """Which form the next step takes: the running number of layers that lack an expert decides. Pure."""

    def __init__(self) -> None:
        self.lacking = 1.0
        self.optimistic = False

    def learn(self, layers: int) -> None:
        """In a step, `layers` layers lacked an expert."""
        self.lacking = MEMORY * self.lacking + (1 - MEMORY) * layers
        if self.lacking < GUESS_BELOW:
            self.optimistic = True
        elif self.lacking > READ_ABOVE:
            self.optimistic = False


class Steps:
    """A model.transformer.LayerLoop. `before(tokens)` is called when a step begins."""

    def __init__(self, layers: Sequence[PagedExperts], before: Callable[[mx.array], None]) -> None:
        self._layers, self._before = layers, before
        self.form = Form()

    def __call__(
        self, blocks: Sequence[Block], x: mx.array, tokens: mx.array, state: ModelState, plan: Plan
    ) -> mx.array:
        self._before(tokens)
        if tokens.size > FEW_ROWS:
            return layer_loop(blocks, x, tokens, state, plan)
        if self.form.optimistic:
            return self._guess(blocks, x, tokens, state, plan)
        before = [layer.stats.misses for layer in self._layers]
        x = layer_loop(blocks, x, tokens, state, plan)
        self.form.learn(sum(layer.stats.misses > n for layer, n in zip(self._layers, before, strict=True)))
        return x

    def _guess(
        self, blocks: Sequence[Block], x: mx.array, tokens: mx.array, state: ModelState, plan: Plan
    ) -> mx.array:
        guesses: list[Guess] = []
        entered = []
        for layer in self._layers:
            layer.guesses = guesses
        try:
            for block, memory in zip(blocks, state.layers, strict=False):
                entered.append(x)
                x = block(x, tokens, memory, plan)
            missing = mx.stack([guess.missing for guess in guesses])
            mx.eval(x, missing, [guess.ids for guess in guesses])
        finally:
            for layer in self._layers:
                layer.guesses = None
        lacking = np.flatnonzero(np.array(missing))
        first = int(lacking[0]) if lacking.size else len(guesses)
        for guess in guesses[:first]:
            guess.layer.confirm(guess.ids)
        self.form.learn(int(lacking.size))
        if first < len(guesses):
            x = entered[first]
            for block, memory in zip(blocks[first:], state.layers[first:], strict=False):
                x = block(x, tokens, memory, plan)
        return x
