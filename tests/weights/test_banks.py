"""Banks of a layer's experts at the true sizes of every release, without memory: nothing is evaluated.

MLX counts a dimension in 32 bits, and several of its kernels the elements of an array: whatever has more is
for views only, and for kernels that count in 64 bits.
"""

from __future__ import annotations

import json
import math
from functools import cache
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from bench.count.ours import trace_ours
from bench.count.trace import Graph, trace
from dsv4_mlx.checkpoint.inventory import BlockTensors, inventory
from dsv4_mlx.checkpoint.manifest import NATIVE, ExpertTable, record_bytes, record_segments, segments_of
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.ops.kernels.launch import metal
from dsv4_mlx.ops.table import REFERENCE, Ops, with_kernels
from dsv4_mlx.paging.slots import SlotBank
from dsv4_mlx.synthetic import cut, release_config
from dsv4_mlx.synthetic.configs import Release
from dsv4_mlx.weights.records import RecordMap
from dsv4_mlx.weights.resident_experts import expert_banks, room

MOST = 2**31 - 1
VIEWS = {"View", "Slice", "Unflatten"}
RELEASES: tuple[Release, ...] = ("flash", "0731", "base", "pro")
STORED = (*RECIPES, "official")


def config_of(release: Release) -> ModelConfig:
    """One trunk layer and all draft blocks: every other layer's experts have the same shapes."""
    raw = release_config(release, true_size=True)
    return parse_config(json.dumps(cut(raw, layers=max(1, raw["num_hash_layers"]))), release)


def table_of(block: BlockTensors, stored: str) -> ExpertTable:
    expert = block.experts[0]
    form = NATIVE[expert[0].form] if stored == "official" else RECIPES[stored].record_format(expert)
    segments = record_segments(*expert, form)
    return ExpertTable("", form, len(block.experts), record_bytes(segments), segments, ())


def too_large(graph: Graph) -> list[str]:
    """What a graph does with arrays that are only to be looked at, and dimensions that no array may have."""
    found = []
    for one in graph.primitives:
        ours = one.name in VIEWS or one.name.startswith("dsv4_")
        large = [a.shape for a in one.inputs if math.prod(a.shape) > MOST]
        if large and not ours:
            found.append(f"{one.name} of {large}")
        found += [f"{one.name} makes {a.shape}" for a in one.outputs if max(a.shape, default=0) > MOST]
    return found


@cache
def faults(table: ExpertTable, slots: int, dtype: mx.Dtype, ops: Ops, tokens: int) -> list[str]:
    """Of a layer that multiplies with `slots` records."""
    gate, _, down = (
        next(s for s in table.segments if s.name == f"{n}_codes") for n in ("gate", "up", "down")
    )
    hidden = down.shape[0]

    def layer(records: mx.array, x: mx.array, ids: mx.array, weights: mx.array) -> list[mx.array]:
        gate_up, down_bank = expert_banks(records, table, dtype)
        assert gate_up.codes.shape == (slots, 2 * gate.shape[0], gate.shape[1])
        assert down_bank.codes.shape == (slots, *down.shape)
        return [ops.expert_ffn(x, ids, weights, gate_up, down_bank, 10.0)]

    given = [
        mx.zeros((slots, table.record_bytes // 4), mx.uint32),
        mx.zeros((1, tokens, hidden), dtype),
        mx.zeros((1, tokens, 6), mx.uint32),
        mx.zeros((1, tokens, 6)),
    ]
    graph = trace(layer, given)
    names = [one.name for one in graph.primitives]
    if ops is REFERENCE:
        assert names.count("GatherQMM") == 2
    else:
        assert sum(name.startswith("dsv4_expert_ffn") for name in names) >= 2
    return too_large(graph)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("release", RELEASES)
def test_banks_of_any_number_of_slots(release: Release, stored: str) -> None:
    before = mx.get_active_memory()
    config = config_of(release)
    for table in {table_of(block, stored) for block in inventory(config).blocks}:
        assert table.count == config.experts == (384 if release == "pro" else 256)
        for slots in range(1, table.count + 1):
            assert faults(table, slots, mx.float32, REFERENCE, 1) == []
        for tokens in (1, 17):
            for dtype in (mx.bfloat16, mx.float32):
                for ops in (REFERENCE, with_kernels(metal)):
                    assert faults(table, table.count, dtype, ops, tokens) == []
    assert mx.get_active_memory() - before < 1 << 20


@pytest.mark.parametrize("release", RELEASES)
def test_memory_for_all_records(release: Release) -> None:
    for stored in STORED:
        table = table_of(inventory(config_of(release)).blocks[0], stored)
        with mock.patch.object(mx, "eval"):
            graph = trace(lambda table=table: [room(table.count, table.record_bytes)], [])
        assert too_large(graph) == []
        assert graph.outputs[0].shape == (table.count, table.record_bytes // 4)


@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize("kernels", [False, True])
def test_the_rest_of_a_step_at_the_longest_context(kernels: bool, rows: int) -> None:
    """All that is not experts: every kind of layer of the widest release, after a million tokens."""
    raw = cut(release_config("pro", true_size=True), layers=3)
    config = parse_config(json.dumps(raw | {"compress_ratios": [0, 4, 128, 0]}), "pro")
    step = trace_ours(config, context=config.max_context - rows, rows=rows, kernels=kernels)
    assert step.graph.primitives and too_large(step.graph) == []


def test_what_is_too_large_is_noticed() -> None:
    """By this file's own eyes: products, flattening by hand and filling 3.4 and 13 GB."""
    records = mx.zeros((256, 13_369_344 // 4), mx.uint32)
    assert too_large(trace(lambda r: [r.view(mx.uint8) + 1], [records])) != []
    assert too_large(trace(lambda r: [mx.contiguous(r.view(mx.uint8))], [records])) != []
    assert too_large(trace(lambda: [mx.zeros((384, 8_773_632), mx.uint32)], [])) != []
    with pytest.raises(OverflowError):
        trace(lambda r: [mx.as_strided(r.view(mx.uint8), (256, 2), (13_369_344, 1), 0)], [records])


@pytest.mark.parametrize("form", ["mxfp4", "mxfp8", "affine4"])
def test_banks_show_what_is_written_to_slots(form: str) -> None:
    """The bytes of every slot as numpy cuts them out; what is written later is seen, nothing is copied."""
    segments = segments_of((128, 64), (128, 64), (64, 128), form)
    table = ExpertTable("", form, 3, record_bytes(segments), segments, ())
    bank = SlotBank(RecordMap((), (), table, ((),) * 3), 3, mx.bfloat16)
    rng = np.random.default_rng(0)
    for once in range(2):
        records = rng.integers(0, 256, (3, table.record_bytes), np.uint8)
        for slot in range(3):
            bank.memory(slot)[:] = records[slot].data
        before = mx.get_active_memory()
        gate_up, down = bank.banks()
        if once:
            assert mx.get_active_memory() == before
        for matrices, names in ((gate_up, ("gate", "up")), (down, ("down",))):
            for part, array in zip(("codes", "scales", "biases"), matrices, strict=False):
                wanted = [s for name in names for s in segments if s.name == f"{name}_{part}"]
                if not isinstance(array, mx.array):
                    assert wanted == []
                    continue
                cuts = [records[:, s.offset : s.offset + s.bytes] for s in wanted]
                found = np.array(mx.contiguous(array).view(mx.uint8)).reshape(3, -1)
                assert np.array_equal(found, np.concatenate(cuts, axis=1))
