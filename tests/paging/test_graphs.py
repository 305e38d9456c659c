"""The number of slots may change the shapes of the banks and nothing else of what is computed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from paging.paged_model import Model, make

from bench.count.trace import Array, Graph, trace
from dsv4_mlx.model.transformer import ChunkMajor
from dsv4_mlx.paging.paged_experts import OptimisticRun, PagedExperts

EXPERTS, EACH = 257, 6
SLOTS = (6, 64, 256)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make(
        tmp_path_factory.mktemp("many"),
        n_routed_experts=EXPERTS,
        num_experts_per_tok=EACH,
        compress_ratios=[0, 4, 128],
        num_hidden_layers=3,
    )


def step_graph(model: Model, slots: int) -> Graph:
    """A whole decode step that nothing interrupts; the bank of every layer is an input."""
    engine = model.open(f"{slots}x", expert_threads=1)
    assert engine.pager is not None
    net, paged = engine.model, list(engine.pager.layers.values())
    net.use(ChunkMajor())
    state = net.new_state()
    mx.eval(net(mx.array([model.tokens[:9]], mx.int32), state), state.arrays())
    optimistic: list[OptimisticRun] = []
    for layer in paged:
        layer.optimistic = optimistic

    def step(tokens: mx.array, *banks: mx.array) -> list[mx.array]:
        for layer, array in zip(paged, banks, strict=True):
            layer.bank._memory.array, layer.bank._views = array, None
            layer.bank.banks = views(layer)  # type: ignore[method-assign]
        return [net(tokens, state, last=True), *(run.ids for run in optimistic)]

    return trace(step, [mx.array([[5]], mx.int32), *(layer.bank._memory.array for layer in paged)])


def views(layer: PagedExperts) -> Any:
    """`SlotBank.banks` without evaluating: what is traced has no values."""
    from dsv4_mlx.weights.resident_experts import expert_banks

    made = expert_banks(layer.bank._memory.array, layer.bank._layout, mx.float32)
    return lambda: made


VIEWS = ("Slice", "Unflatten", "View")  # of a bank; their arguments hold its shape


def outline(graph: Graph, slots: int) -> list[tuple[object, ...]]:
    """Every primitive with what it works on; of banks and views over banks without the number of slots."""
    banks = {array.key for array in graph.inputs[1:]}

    def shape(array: Array) -> tuple[object, ...]:
        if array.key not in banks:
            return array.shape, array.dtype
        assert array.shape[0] == slots
        return "slots", array.shape[1:], array.dtype

    found: list[tuple[object, ...]] = []
    for one in graph.primitives:
        view = one.name in VIEWS and one.inputs[0].key in banks
        if view:
            banks.update(array.key for array in one.outputs)
        arguments = "" if view else repr(one.arguments)
        found.append((one.name, [*map(shape, one.inputs)], [*map(shape, one.outputs)], arguments))
    return found


def test_graphs_differ_in_the_shapes_of_the_banks_only(many: Model) -> None:
    graphs = {slots: step_graph(many, slots) for slots in SLOTS}
    first, *others = (outline(graph, slots) for slots, graph in graphs.items())
    names = [name for name, *_ in first]
    assert names.count("GatherQMM") == 2 * 3  # two products a layer, whatever the slots
    for other in others:
        assert other == first
    sizes = {slots: [a.shape for a in graph.inputs] for slots, graph in graphs.items()}
    assert [shape[0] for shape in sizes[64][1:]] == [64] * 3
    assert [shape[1:] for shape in sizes[6]] == [shape[1:] for shape in sizes[256]]


def test_logits_at_these_sizes(many: Model) -> None:
    for slots in SLOTS:
        assert np.array_equal(many.score(many.open(f"{slots}x")), many.logits)


def test_a_models_memory_goes_with_it(tmp_path: Path) -> None:
    """At once, not when Python looks for circles: the next model may need it."""
    model = make(tmp_path)
    gc.collect()
    before = mx.get_active_memory()
    gc.disable()
    try:
        engine = model.open("3x")
        engine.session().sync(model.tokens[:20])
        assert engine.pager is not None and mx.get_active_memory() > before + 100_000
        engine.pager.close()
        del engine
        assert mx.get_active_memory() < before + 50_000
    finally:
        gc.enable()
