"""How much MLX keeps of freed buffers, by what is done: one limit for the process, as MLX has it.

Nothing while a model loads: no buffer comes twice. While a prompt is read up to a quarter of `workspace`,
which counts it: a chunk's layers are computed one after the other in buffers of the same sizes. While tokens
are decoded enough for a step. MLX frees what is beyond a limit when it next makes a buffer.
"""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.engine.memory import workspace
from dsv4_mlx.paging.paged_experts import FEW_ROWS

DECODE = 256 << 20
PREFILL = 1 << 30
_limits = {"now": -1, "prefill": DECODE}


def prefill_limit(weights: int) -> int:
    """Bytes, beside a model that has `weights` bytes in memory."""
    return max(DECODE, min(PREFILL, workspace(weights) // 4))


def loading(weights: int) -> None:
    """A model that will have `weights` bytes in memory is about to be loaded."""
    _limits["prefill"] = max(_limits["prefill"], prefill_limit(weights))
    _set(0)


def step(rows: int) -> None:
    """So many rows are about to be computed together; 0: a model is open."""
    _set(_limits["prefill"] if rows > FEW_ROWS else DECODE)


def _set(limit: int) -> None:
    if limit != _limits["now"]:
        _limits["now"] = limit
        mx.set_cache_limit(limit)
