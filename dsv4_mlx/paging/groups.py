"""A chunk computed a group of experts at a time, to the same bits as all at once.

A row is one (token, expert) pair. What a row gives doesn't depend on the rows beside it, and a token's rows
are added in the order of its list when all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.model.tensors import Routed
from dsv4_mlx.ops.reference.expert_ffn import add_in_order

Ids = npt.NDArray[np.int64]
# rows of the chunk in all; x, slots and weights of some of its rows
Product = Callable[[int, mx.array, mx.array, mx.array], mx.array]


class Groups:
    """The rows of one chunk; `wanted` are its ids [B, T, A] on the host."""

    def __init__(self, chunk: Routed, wanted: Ids) -> None:
        self._shape, self._experts = wanted.shape, wanted.reshape(-1)
        self._x = chunk.x.reshape(-1, chunk.x.shape[-1])
        self._chunk = chunk.rows
        self._weights, self._beside = chunk.weights.reshape(-1), chunk.beside
        self._rows: list[Ids] = []
        self._outs: list[mx.array] = []

    def compute(self, group: Collection[int], slot_of: Ids, product: Product) -> mx.array | None:
        """The rows of these experts [n, D], not evaluated; None where the chunk has none."""
        rows = np.flatnonzero(np.isin(self._experts, list(group)))
        if not rows.size:
            return None
        one = (1, rows.size, 1)
        out = product(
            self._chunk,
            self._x[mx.array(rows // self._shape[-1])][None],
            mx.array(slot_of[self._experts[rows]].astype(np.uint32)).reshape(one),
            self._weights[mx.array(rows)].reshape(one),
        )[0]
        self._rows.append(rows)
        self._outs.append(out)
        return out

    def result(self) -> mx.array:
        """[B, T, D], when every expert has been in a group."""
        place = np.empty(self._experts.size, np.int64)
        place[np.concatenate(self._rows)] = np.arange(self._experts.size)
        rows = mx.concatenate(self._outs)[mx.array(place)]
        return add_in_order(rows.reshape(*self._shape, -1)) + self._beside
