"""One prompt, any cuts: the same logits. And the state a cut leaves is the state, however it was reached."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Array, Checkpoints, decode, run, same_bits, state_bits
from compare import PARTITION, assert_bits, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import tiny_model, token_ids

from dsv4_mlx.model.state import SLACK
from dsv4_mlx.model.transformer import Transformer

LENGTH = 420
PIECES = (1, 3, 4, 5, 127, 128, 129)
TOKENS = token_ids(np.random.default_rng(7), LENGTH)
Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.fixture(scope="module")
def whole(model: Transformer) -> Array:
    """Every position's logits, from one prefill."""
    return run(model, TOKENS)


@given(pieces=st.lists(st.sampled_from(PIECES) | st.integers(1, 140), min_size=2, max_size=40))
@settings(max_examples=40)
def test_any_partition(model: Transformer, whole: Array, pieces: list[int]) -> None:
    cuts = [end for end in accumulate(pieces) if end < LENGTH]
    assert_close(run(model, TOKENS, cuts), whole, PARTITION, f"cut at {cuts}")


@pytest.mark.parametrize("piece", PIECES)
def test_equal_pieces(model: Transformer, whole: Array, piece: int, record_property: Note) -> None:
    found = assert_close(
        run(model, TOKENS, range(piece, LENGTH, piece)), whole, PARTITION, f"pieces of {piece}"
    )
    record_property("largest difference, std", f"{found:.1e}")


@pytest.mark.parametrize("name", ["topk", "awkward", "small"])
def test_partitions_of_converted_models(checkpoints: Checkpoints, name: str, record_property: Note) -> None:
    """The same on quantised weights, whose products run another way for one row than for many."""
    vocabulary = checkpoints.config(name)["vocab_size"]
    tokens = np.random.default_rng(3).integers(0, vocabulary, 270)
    quantised, worst = checkpoints.model(name), 0.0
    reference = run(quantised, tokens)
    for cuts in ([1, 4, 9, 136, 137, 265], [3, 7, 127, 128, 133, 261]):
        found = run(quantised, tokens, cuts)
        worst = max(worst, assert_close(found, reference, PARTITION, f"cut at {cuts}"))
    record_property("largest difference, std", f"{worst:.1e}")


def test_every_length_of_prompt(model: Transformer, whole: Array) -> None:
    """Lengths of every residue mod 4 and mod 128: the last row, and a decoded token after it."""
    start = model.new_state()
    run(model, TOKENS[:255], (), start)
    for length in range(256, 385):
        rows = run(model, TOKENS[255 : length + 1], [length - 255], start.fork())
        assert_close(rows[-2:], whole[length - 1 : length + 1], PARTITION, f"a prompt of {length}")
    for length in range(1, 10):
        rows = decode(model, TOKENS[: length + 1], length)
        assert_close(rows, whole[: length + 1], PARTITION, f"a prompt of {length}")


@pytest.mark.parametrize("cuts", [[], [100, 200], [1, 5, 128, 257]])
def test_cut_alike_is_bit_equal(model: Transformer, cuts: list[int]) -> None:
    states = [model.new_state(), model.new_state()]
    first, second = (run(model, TOKENS, cuts, state) for state in states)
    assert_bits(first, second, "the same cuts twice")
    assert same_bits(*map(state_bits, states))


def test_a_longer_prompt_begins_alike(model: Transformer) -> None:
    """Rows before a cut know nothing of what follows it."""
    assert_bits(run(model, TOKENS, [128, 256])[:256], run(model, TOKENS[:300], [128, 256])[:256])


def test_tokens_ahead_change_nothing(model: Transformer, whole: Array) -> None:
    other = [*TOKENS[:200], *reversed(TOKENS[200:])]
    assert_bits(run(model, other)[:200], whole[:200], "rows before the change")
    assert np.abs(run(model, other)[200:] - whole[200:]).max() > 0.1


@pytest.mark.parametrize("rows", [1, 2, SLACK])
@pytest.mark.parametrize("start", [1, 3, 4, 30, 126, 127, 128, 131, 255, 256, 300])
def test_a_step_run_twice_is_run_once(model: Transformer, start: int, rows: int) -> None:
    state = model.new_state()
    run(model, TOKENS[:start], (), state)
    once = run(model, TOKENS[start : start + rows], (), state)
    bits = state_bits(state)
    state.take_back(rows)
    twice = run(model, TOKENS[start : start + rows], (), state)
    assert_bits(twice, once, "the second time")
    assert same_bits(state_bits(state), bits)


@pytest.mark.parametrize(
    "start",
    [
        *(127, 128, 129, 130, 256, 300),
        *(pytest.param(start, marks=pytest.mark.long) for start in (*range(120, 127), *range(131, 137))),
    ],
)
@pytest.mark.parametrize("back", [1, 5, SLACK])
def test_taken_back_tokens_leave_no_trace(model: Transformer, start: int, back: int) -> None:
    """Across every way that groups of 4 and 128 can close in between."""
    ahead, other = TOKENS[start : start + back], TOKENS[-12:]
    state, clean = model.new_state(), model.new_state()
    for fresh in (state, clean):
        run(model, TOKENS[:start], (), fresh)
    run(model, ahead, range(back), state)
    state.take_back(back)
    assert_bits(run(model, other, range(12), state), run(model, other, range(12), clean), "after taking back")


def test_taking_back_has_a_limit(model: Transformer) -> None:
    state = model.new_state()
    run(model, TOKENS[:5], (), state)
    with pytest.raises(ValueError, match="0 to 5"):
        state.take_back(6)
    run(model, TOKENS[5:50], (), state)
    with pytest.raises(ValueError, match=f"0 to {SLACK}"):
        state.take_back(SLACK + 1)
    state.take_back(5)
    with pytest.raises(ValueError, match=f"0 to {SLACK - 5}"):
        state.take_back(4)
    with pytest.raises(ValueError, match="not -1"):
        state.take_back(-1)


@pytest.mark.parametrize("start", [5, 127, 128, 201])
def test_snapshot_and_restore(model: Transformer, start: int) -> None:
    state = model.new_state()
    run(model, TOKENS[:start], (), state)
    point = state.snapshot()
    once = run(model, TOKENS[start : start + 150], [60], state)
    bits = state_bits(state)
    state.restore(point)
    assert state.length == start
    assert_bits(run(model, TOKENS[start : start + 150], [60], state), once, "after restoring")
    assert same_bits(state_bits(state), bits)


def test_a_fork_is_independent(model: Transformer) -> None:
    state = model.new_state()
    run(model, TOKENS[:133], (), state)
    fork = state.fork()
    bits = state_bits(state)
    run(model, TOKENS[200:400], [77], fork)
    assert same_bits(state_bits(state), bits) and state.length == 133
    expected = run(model, TOKENS[133:170], (), state)
    again = model.new_state()
    run(model, TOKENS[:133], (), again)
    run(model, TOKENS[200:400], [77], state.fork())
    assert_bits(run(model, TOKENS[133:170], (), again), expected, "the original")


def test_growing_buffers_change_nothing(model: Transformer, whole: Array) -> None:
    """Row buffers that grow in the middle of a prompt keep what they hold."""
    rows = run(model, TOKENS, [100, 127, 130, 256], model.new_state(growth=128))
    assert_bits(rows, run(model, TOKENS, [100, 127, 130, 256]), "small buffers")


@pytest.mark.parametrize("name", ["topk", "awkward"])
def test_a_batch_is_its_sequences(checkpoints: Checkpoints, name: str) -> None:
    quantised = checkpoints.model(name)
    ids = np.random.default_rng(5).integers(0, checkpoints.config(name)["vocab_size"], (2, 170))
    state, rows = quantised.new_state(batch=2), []
    for start, end in ((0, 61), (61, 62), (62, 65), (65, 169), (169, 170)):
        logits = quantised(mx.array(ids[:, start:end]), state)
        mx.eval(logits, *state.arrays())
        rows.append(np.array(logits))
    together = np.concatenate(rows, axis=1)
    for i in range(2):
        alone = run(quantised, ids[i], [61, 62, 65, 169])
        assert_close(together[i], alone, PARTITION, f"sequence {i} of the batch")


def test_last_row_only(model: Transformer) -> None:
    whole = model(mx.array([TOKENS[:50]]), model.new_state())
    last = model(mx.array([TOKENS[:50]]), model.new_state(), last=True)
    assert last.shape == (1, 1, model.config.vocab_size)
    assert_close(np.array(last[0, 0]), np.array(whole[0, -1]), PARTITION, "the last row")
