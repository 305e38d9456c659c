"""`official` (simulated quantisation of rows and index) and the draft block, against the numpy model."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Checkpoints, run
from compare import CHAOTIC, LOGITS, OFFICIAL_MEDIAN, OFFICIAL_TOP1, assert_close, assert_official
from oracle import goldens
from oracle.cases import CASES, Case

from dsv4_mlx.ops.reference.hc_post import hc_post
from dsv4_mlx.ops.types import Streams

Note = Callable[[str, object], None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_model(checkpoints: Checkpoints, case: Case, record_property: Note) -> None:
    tokens = case.official.tokens(case.config["vocab_size"])
    expected = checkpoints.numpy_model(case.name, "official").logits(tokens)
    logits = run(checkpoints.model(case.name, "official"), tokens)
    if case.name in CHAOTIC:
        share = float(np.mean(logits.argmax(-1) == expected.argmax(-1)))
        assert share >= OFFICIAL_TOP1
    else:
        median, share = assert_official(logits, expected, case.name)
        record_property("median difference, std", f"{median:.1e}")
    record_property("same first token", f"{share:.1%}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_layer(checkpoints: Checkpoints, case: Case, record_property: Note) -> None:
    """Every layer on the numpy model's own input: no layer inherits another's rounding."""
    tokens = case.official.tokens(case.config["vocab_size"])
    model = checkpoints.model(case.name, "official")
    streams = list(checkpoints.numpy_model(case.name, "official").layers(tokens))
    state, plan = model.new_state(), model.planner.plan(0, len(tokens))
    state.reserve(len(tokens))
    ids = mx.array(np.asarray(tokens, np.int32)[None])
    worst = 0.0
    for layer, block in enumerate(model.blocks):
        x = mx.array(streams[layer].astype(np.float32)[None])
        actual = np.array(hc_post(block(Streams(x), ids, state.layers[layer], plan)))[0]
        expected = streams[layer + 1]
        median = float(np.median(np.abs(actual - expected)) / expected.std())
        assert median <= OFFICIAL_MEDIAN, f"layer {layer}"
        worst = max(worst, median)
    record_property("worst layer's median difference, std", f"{worst:.1e}")


@pytest.mark.parametrize("name", goldens.names())
def test_official_is_not_exact(checkpoints: Checkpoints, name: str) -> None:
    """A rounding that is never applied would pass every tolerance but this one."""
    tokens = goldens.load(name).prompts[0].tokens[:40]
    exact, official = (run(checkpoints.model(name, n), tokens) for n in ("exact", "official"))
    assert np.median(np.abs(exact - official)) / exact.std() > 100 * OFFICIAL_MEDIAN


@pytest.mark.parametrize("name", ["topk", "awkward", "heads"])
@pytest.mark.parametrize("pieces", [(), (1, 2, 3, 40, 41)])
def test_draft_block(checkpoints: Checkpoints, name: str, pieces: tuple[int, ...]) -> None:
    """The trunk's streams and the next token -> logits of the token after; whole, and in pieces."""
    ids = goldens.load(name).prompts[0].tokens[:61]
    model, oracle = checkpoints.model(name), checkpoints.numpy_model(name)
    expected = oracle.mtp_logits(oracle.streams(ids[:-1]), ids[1:])
    state, rows, start = model.new_state(), [], 0
    for end in (*pieces, 60):
        streams = model.streams(mx.array(ids[None, start:end]), state)
        logits, after = model.draft(streams, mx.array(ids[None, start + 1 : end + 1]), state, start)
        mx.eval(logits, *state.arrays())
        assert after.shape == streams.shape
        rows.append(np.array(logits[0]))
        start = end
    assert_close(np.concatenate(rows), expected, LOGITS, "draft logits")
