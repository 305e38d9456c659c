"""One layer at a time: as this machine computes it against the references in float32, on the same streams."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import mlx.core as mx
import numpy as np

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.evaluation.report import AcceptanceStep, Bar
from dsv4_mlx.model.block import Block
from dsv4_mlx.model.chunk import ChunkPlanner
from dsv4_mlx.model.state import LayerState
from dsv4_mlx.ops.table import EXACT, REFERENCE, Ops
from dsv4_mlx.weights.load import StoredTensors, activation_dtype
from dsv4_mlx.weights.stored import StoredModel

PREFILL = 136  # tokens in one chunk: the window is full, a group of 128 closed; then one token more
_BOUND = {mx.float32: 1e-4, mx.bfloat16: 3e-2, mx.float16: 1e-2}

Rows = np.ndarray


def layers(stored: StoredModel, ops: Ops, numbers: Sequence[int] | None, bar: Bar) -> AcceptanceStep:
    """Layers by number; None: all of them.

    The error of a token is the root mean square over its streams' update, relative to the reference's. Of the
    tokens of a chunk the median must be within the bound of the activations' dtype: where two experts
    score alike, rounding may choose the other one for a token.
    """
    dtype = activation_dtype()
    found: list[str] = []
    errors: dict[str, float | None] = {}
    numbers = range(stored.config.layers) if numbers is None else numbers
    with bar("layers", "layers") as show:
        for done, number in enumerate(numbers):
            ours = _outputs(stored, number, ops, dtype)
            expected = _outputs(stored, number, REFERENCE, mx.float32)
            worst = 0.0
            for name, a, b in zip(("prefill", "decode"), ours, expected, strict=True):
                error = _error(a, b)
                worst = max(worst, error) if error == error else error
                if not error <= _BOUND[dtype]:
                    found.append(
                        f"layer {number}, {name}: error {error:.2g}, expected at most {_BOUND[dtype]:g}"
                    )
            errors[str(number)] = worst if np.isfinite(worst) else None
            show(done + 1, len(numbers))
    figures = {"dtype": str(dtype).removeprefix("mlx.core."), "ops": ops.name, "errors": errors}
    return AcceptanceStep("layers", not found, tuple(found), figures)


def sample(config: ModelConfig) -> list[int]:
    """One layer of each kind, and the last."""
    kinds = {(config.kind(i), config.hashed(i)): i for i in reversed(range(config.layers))}
    return sorted({*kinds.values(), config.layers - 1})


def _outputs(stored: StoredModel, number: int, ops: Ops, dtype: mx.Dtype) -> list[Rows]:
    """What the layer adds to made-up streams: of a prefill, then of a token decoded after it."""
    config = stored.config
    draw = np.random.default_rng(number)
    shape = (1, PREFILL + 1, config.streams, config.hidden_size)
    x = mx.array(draw.standard_normal(shape, np.float32))
    tokens = mx.array(draw.integers(0, config.vocab_size, shape[:2]), mx.int32)
    found = []
    with closing(stored.arrays(lambda count: None)) as arrays:
        source = StoredTensors(stored, arrays, dtype)
        block = Block(config, number, f"layers.{number}", source, ops, EXACT)
        state, planner = _state(config, number, dtype), ChunkPlanner(config)
        for start, end in ((0, PREFILL), (PREFILL, PREFILL + 1)):
            before = x[:, start:end]
            added = block.added(before, tokens[:, start:end], state, planner.plan(start, end - start))
            mx.eval(added, [buffer.buffer for buffer in state.buffers()])
            found.append(np.array(added.astype(mx.float32))[0])
    return found


def _state(config: ModelConfig, number: int, dtype: mx.Dtype) -> LayerState:
    state = LayerState(config, config.kind(number), 1, dtype)
    for rows in (state.rows, state.index_rows):
        if rows is not None:
            rows.grow(PREFILL // state.kind.ratio + 1)
    return state


def _error(found: Rows, expected: Rows) -> float:
    """Median over tokens; NaN where a number isn't one."""
    axes = (1, 2)
    off = np.sqrt(np.mean((found - expected) ** 2, axis=axes))
    return float(np.median(off / np.sqrt(np.mean(expected**2, axis=axes))))
