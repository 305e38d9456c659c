"""Which experts a layer will need, before it says so. A wrong prediction costs a read, never a bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakMethod, ref

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.model.block import Block
from dsv4_mlx.paging.paged_experts import PagedExperts

TRUST = 0.5  # share of advised reads that must be of use
MEMORY = 0.98  # per advised expert: about the last 50 count


class Trust:
    """How much of what was predicted, and was not loaded, came true. Pure."""

    def __init__(self) -> None:
        self.share = 1.0

    def learn(self, predicted: set[int], needed: set[int]) -> None:
        for expert in predicted:
            self.share = MEMORY * self.share + (1 - MEMORY) * (expert in needed)

    @property
    def enough(self) -> bool:
        return self.share >= TRUST


class NextLayer:
    """The router of the next layer, applied to this layer's input.

    Both inputs come from the same streams, one layer apart. Reads are advised while at least half of those
    advised were of use; predictions go on meanwhile, so that trust can come back.
    """

    def __init__(self, following: PagedExperts, route: Callable[[mx.array], mx.array]) -> None:
        self._following, self._route = following, route
        self._predicted: set[int] = set()
        self.trust = Trust()
        learn = WeakMethod(self.learn)  # or both would hold each other, and memory with them

        def on_need(needed: set[int]) -> None:
            told = learn()
            if told is not None:
                told(needed)

        following.on_need = on_need

    def predict(self, x: mx.array) -> mx.array:
        return self._route(x)

    def advise(self, predicted: npt.NDArray[np.int64]) -> None:
        table = self._following.table
        self._predicted = {int(e) for e in predicted.ravel() if table.slot_of[int(e)] < 0}
        if self._predicted and self.trust.enough:
            self._following.advise(self._predicted)

    def learn(self, needed: set[int]) -> None:
        """The next layer has said what it needs."""
        self.trust.learn(self._predicted, needed)
        self._predicted = set()


def predictor_of(block: Block, following: PagedExperts) -> NextLayer:
    """Advice for `following`, the experts of `block`, which is not a hash layer."""
    router = ref(block.ffn)  # or it would hold itself, through its experts, and its memory with it

    def route(x: mx.array) -> mx.array:
        moe = router()
        if moe is None:
            raise RuntimeError("the model of this predictor is gone")
        return moe.ops.route(x, moe.gate, moe.bias, count=moe.count, scale=moe.scale)[0]

    return NextLayer(following, route)


class HashLayers:
    """Layers that route by token: their experts are known as soon as the tokens are."""

    def __init__(self, blocks: list[Block], experts: list[PagedExperts]) -> None:
        self._tables = [
            (np.array(block.ffn.experts_by_token), paged)
            for block, paged in zip(blocks, experts, strict=True)
        ]

    def advise(self, tokens: Sequence[mx.array]) -> None:
        """The tokens [B, T] of these chunks are about to run."""
        ids = np.concatenate([np.array(chunk).ravel() for chunk in tokens])
        for table, paged in self._tables:
            paged.advise(set(table[ids].ravel().tolist()))
