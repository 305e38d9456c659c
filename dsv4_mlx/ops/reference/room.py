"""Rows of a buffer that is not full yet: which of them are there."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np


def room_mask(places: int, count: mx.array) -> mx.array:
    """float32 [1, places]: 0 for the first `count` (uint32 [1]) places, -inf for the others."""
    return mx.where(_places(places) < count, 0.0, -mx.inf)


@lru_cache(maxsize=8)
def _places(count: int) -> mx.array:  # uint32 [1, count]
    return mx.array(np.arange(count, dtype=np.uint32)[None])
