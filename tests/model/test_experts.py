"""The experts of a layer are given their product when they are made: the way there is a straight line."""

from __future__ import annotations

import gc
import inspect
import weakref

import mlx.core as mx
import numpy as np
import pytest
from small_model import tiny_model

from bench.demo_model.float_tensors import FloatExperts, FloatTensors
from dsv4_mlx.model.tensors import ExpertSource, Routed
from dsv4_mlx.ops.types import Bank
from dsv4_mlx.paging.paged_experts import PagedExperts
from dsv4_mlx.weights.resident_experts import ResidentExperts


@pytest.mark.parametrize("kind", [ExpertSource, FloatExperts, ResidentExperts, PagedExperts])
def test_a_call_brings_chunks_and_nothing_else(kind: type) -> None:
    assert list(inspect.signature(kind.routed).parameters) == ["self", "chunks"]  # type: ignore[attr-defined]


def test_experts_multiply_with_what_they_were_made_with() -> None:
    rng = np.random.default_rng(3)
    given: list[tuple[Routed, Bank, Bank]] = []

    def product(chunk: Routed, gate_up: Bank, down: Bank) -> mx.array:
        given.append((chunk, gate_up, down))
        return chunk.x * len(given)

    shapes = {"w1": (6, 4), "w3": (6, 4), "w2": (4, 6)}
    tensors = {
        f"layers.0.ffn.experts.{e}.{name}.weight": mx.array(rng.normal(size=shape).astype(np.float32))
        for e in range(3)
        for name, shape in shapes.items()
    }
    experts = FloatTensors(tensors).experts("layers.0", product)
    x, ids = mx.ones((1, 2, 4)), mx.zeros((1, 2, 1), mx.uint32)
    chunks = [Routed(x, ids, mx.ones((1, 2, 1)), x, 2), Routed(x, ids, mx.ones((1, 2, 1)), None, 9)]
    outs = experts.routed(chunks)
    assert [np.array(out).tolist() for out in outs] == [np.array(x * n).tolist() for n in (1, 2)]
    assert [one for one, _, _ in given] == chunks
    assert given[0][1].codes.shape == (3, 12, 4) and given[0][2].codes.shape == (3, 4, 6)


def test_a_model_that_nobody_holds_is_gone_at_once() -> None:
    """Not at the next look of the garbage collector: its weights are most of a Mac's memory."""
    model = tiny_model()
    blocks = [weakref.ref(block.ffn) for block in model.blocks]
    gc.disable()
    try:
        del model
        assert [one() for one in blocks] == [None] * len(blocks)
    finally:
        gc.enable()
