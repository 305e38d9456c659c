"""Paging costs time and never a bit: same logits whatever is in memory, whoever reads, whenever it comes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from paging.paged_model import EACH, EXPERTS, Model, make

import dsv4_mlx
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import MachineError
from dsv4_mlx.paging.paged_experts import PagedExperts
from dsv4_mlx.paging.reading import RecordReader
from dsv4_mlx.paging.stats import total
from dsv4_mlx.weights.records import RecordMap


class Late:
    """Another reader's records, each after a moment of its own."""

    def __init__(self, reader: RecordReader, seed: int, most: float = 0.003) -> None:
        self._reader, self._random, self._most = reader, random.Random(seed), most

    def __call__(self, records: RecordMap, expert: int, into: memoryview) -> None:
        into[:] = bytes([255]) * len(into)  # what is used too early is not a number
        time.sleep(self._random.random() * self._most)
        self._reader(records, expert, into)
        time.sleep(self._random.random() * self._most / 4)


class Swapped:
    """Gives expert 1 in place of expert 0: what a wrong slot would do."""

    def __init__(self, reader: RecordReader) -> None:
        self._reader = reader

    def __call__(self, records: RecordMap, expert: int, into: memoryview) -> None:
        self._reader(records, max(1, expert), into)


def layers(engine: Engine) -> list[PagedExperts]:
    assert engine.pager is not None
    return list(engine.pager.layers.values())


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("memory", ["1x", "10%", "3x", f"{EACH}x", "50%", f"{EXPERTS - 1}x"])
def test_logits_are_those_of_the_whole_model(model: Model, memory: str, threads: int) -> None:
    engine = model.open(memory, expert_threads=threads)
    assert np.array_equal(model.score(engine), model.logits)
    counted = total([layer.stats for layer in layers(engine)])
    assert counted.misses > 0
    assert counted.bytes == (counted.misses + counted.advised) * layers(engine)[0].records.record_bytes


@pytest.mark.parametrize(("memory", "threads"), [("1x", 8), ("10%", 1), ("50%", 3), ("100%", 1)])
def test_the_official_folder_gives_the_same_bits(model: Model, memory: str, threads: int) -> None:
    """Six ranges per expert in place of one, and a matrix of other bytes around it."""
    engine = model.official().open(memory, expert_threads=threads)
    assert np.array_equal(model.score(engine), model.logits)


def test_a_wrong_expert_would_be_seen(model: Model) -> None:
    engine = model.open("5x")
    assert engine.pager is not None
    engine.pager.pool.reader = Swapped(engine.pager.pool.reader)
    assert not np.array_equal(model.score(engine), model.logits)


@pytest.mark.parametrize(("memory", "seed"), [("1x", 0), ("2x", 1), ("5x", 2), ("9x", 3), ("15x", 4)])
def test_reads_may_end_in_any_order_and_advice_may_be_anything(model: Model, memory: str, seed: int) -> None:
    engine = model.open(memory, expert_threads=5)
    assert engine.pager is not None
    engine.pager.pool.reader = Late(engine.pager.pool.reader, seed)
    chance = random.Random(seed)

    class Anything:
        def predict(self, x: mx.array) -> mx.array:
            return mx.sum(x)

        def advise(self, predicted: object) -> None:
            others = [other for other in layers(engine) if other.predictor is not self]
            chance.choice(others).advise(chance.sample(range(EXPERTS), chance.randrange(EXPERTS)))

    for layer in layers(engine):
        layer.predictor = Anything()
    assert np.array_equal(model.score(engine, chunk=30), model.score(model.open("100%"), chunk=30))
    assert total([layer.stats for layer in layers(engine)]).advised > 0


class Always:
    """A strategy that is never left, and how often a run was short of experts."""

    optimistic = True

    def __init__(self) -> None:
        self.lacking: list[int] = []

    def learn(self, layers: int) -> None:
        self.lacking.append(layers)


@pytest.mark.parametrize(("memory", "right"), [("3x", False), ("19x", True)])
def test_guessing_gives_the_same_bits(model: Model, memory: str, right: bool) -> None:
    """Steps that were right to read nothing, and steps repaired from the first layer that was not."""
    engine = model.open(memory)
    engine.model.schedule.strategy = strategy = Always()  # type: ignore[attr-defined]
    session, whole = engine.session(), model.open("100%").session()
    for count in (30, *range(31, 61)):
        assert np.array_equal(session.sync(model.tokens[:count]), whole.sync(model.tokens[:count]))
    assert len(strategy.lacking) == 30
    assert any(strategy.lacking)
    assert (0 in strategy.lacking) == right


def test_a_read_that_fails_in_a_repair_leaves_the_program_usable(model: Model) -> None:
    engine = model.open("3x")
    assert engine.pager is not None
    engine.model.schedule.strategy = Always()  # type: ignore[attr-defined]
    reader = engine.pager.pool.reader
    session = engine.session()
    first = session.sync(model.tokens[:20])

    def broken(records: RecordMap, expert: int, into: memoryview) -> None:
        raise MachineError("no disk")

    engine.pager.pool.reader = broken
    with pytest.raises(MachineError, match="no disk"):
        for token in model.tokens[20:60]:
            session.advance(token)
    engine.pager.pool.reader = reader
    assert np.array_equal(session.sync(model.tokens[:20]), first)


def test_sequences_side_by_side(model: Model) -> None:
    """Two sessions of one engine take turns over the same slots."""
    engine, whole = model.open("3x"), model.open("100%")
    tokens = {0: model.tokens[:20], 1: model.tokens[20:50]}
    paged = {i: engine.session() for i in tokens}
    alone = {i: whole.session() for i in tokens}
    for step in range(12):
        for i, ids in tokens.items():
            given = ids[: 8 + step]
            assert np.array_equal(paged[i].sync(given), alone[i].sync(given))


def test_work_that_was_not_evaluated_keeps_its_experts(model: Model) -> None:
    """Two passes are built before either is computed: the second may not read over the first."""
    engine = model.open("2x")
    ids = [mx.array([[token]], mx.int32) for token in model.tokens[:6]]
    states = [engine.model.new_state() for _ in ids]
    built = [engine.model(token, state) for token, state in zip(ids, states, strict=True)]
    whole = model.open("100%").model
    for token, logits in zip(ids, built, strict=True):
        expected = whole(token, whole.new_state())
        assert np.array_equal(np.array(logits), np.array(expected))


def test_affine_recipe(tmp_path: Path) -> None:
    """Its scales are cast on the CPU, so views over the slots can't be kept."""
    model = make(tmp_path, "4bit", hidden_size=64, moe_intermediate_size=64)
    assert np.array_equal(model.score(model.open("3x")), model.logits)


def test_draft_block(tmp_path: Path) -> None:
    model = make(tmp_path, num_nextn_predict_layers=1, compress_ratios=[0, 4, 128, 4, 0])
    found = []
    for memory in ("100%", "2x"):
        net = model.open(memory).model
        state = net.new_state()
        ids = mx.array([model.tokens[:9]], mx.int32)
        streams = net.streams(ids[:, :8], state)
        logits, _ = net.draft(streams, ids[:, 1:], state, 0)
        found.append(np.array(logits))
    assert np.array_equal(found[0], found[1])


DEMO = Path(dsv4_mlx.__file__).parent / "demo"
ASKED = "What is dsv4-mlx? Answer, then say which recipe is lossless. " * 12


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, converted: trained routing, so some experts are wanted again and again."""
    folder = tmp_path_factory.mktemp("demo") / "converted"
    convert(DEMO, folder, "native")
    return folder


def said_by(folder: Path, memory: str, threads: int | None = None) -> tuple[list[int], list[np.ndarray]]:
    """A greedy answer to a long prompt, and the logits before each of its tokens."""
    engine = Engine.open(folder, EngineOptions(context=2048, expert_memory=memory, expert_threads=threads))
    session = engine.session()
    logits = [session.sync(engine.prompts.encode(engine.prompts.talk([("user", ASKED)], "off")))]
    while len(logits) < 40:
        logits.append(session.advance(int(logits[-1].argmax())))
    return list(session.tokens), logits


@pytest.fixture(scope="module")
def whole_demo(demo: Path) -> tuple[list[int], list[np.ndarray]]:
    return said_by(demo, "100%")


@pytest.mark.parametrize(
    ("source", "memory", "threads"),
    [
        ("converted", "1x", 1),
        ("converted", "25%", 8),
        ("official", "1x", 8),
        ("official", "50%", 1),
        pytest.param("converted", "1x", 8, marks=pytest.mark.long),
        pytest.param("converted", "50%", 1, marks=pytest.mark.long),
        pytest.param("official", "1x", 1, marks=pytest.mark.long),
        pytest.param("official", "25%", 8, marks=pytest.mark.long),
    ],
)
def test_demo_model(
    demo: Path,
    whole_demo: tuple[list[int], list[np.ndarray]],
    source: str,
    memory: str,
    threads: int,
) -> None:
    tokens, logits = said_by(demo if source == "converted" else DEMO, memory, threads)
    assert tokens == whole_demo[0]
    assert all(np.array_equal(a, b) for a, b in zip(logits, whole_demo[1], strict=True))
