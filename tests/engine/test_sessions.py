"""Sessions go on: what `sync` reuses, and that reuse changes no bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import run
from compare import PARTITION, assert_bits, assert_close
from small_model import MARKERS, new_session, tiny_model, token_ids

import dsv4_mlx
from dsv4_mlx.engine.chooser import GenerationLimits
from dsv4_mlx.engine.chunking import chunk_ends, common_prefix
from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.language_model import check_logits
from dsv4_mlx.engine.memory import RESTART_POINTS, state_bytes
from dsv4_mlx.engine.prompt_room import check_prompt, room_for_answer
from dsv4_mlx.engine.session import Session
from dsv4_mlx.errors import DoesNotFit, InputError, ModelOutputError, UsageError
from dsv4_mlx.model.transformer import Transformer

TOKENS = token_ids(np.random.default_rng(1), 1300)
PACKAGE = Path(dsv4_mlx.__file__).parent


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def test_sync_is_a_prefill_cut_by_the_rule(model: Transformer) -> None:
    session = new_session(model)
    logits = session.sync(TOKENS)
    expected = run(model, TOKENS, chunk_ends(TOKENS, MARKERS))
    assert (session.tokens, session.cached) == (TOKENS, 0)
    assert_close(logits, expected[-1], PARTITION)


def test_the_same_sequence_costs_nothing(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = new_session(model)
    logits = session.sync(TOKENS[:600])
    monkeypatch.setattr(Session, "_step", lambda *_: pytest.fail("computed again"))
    assert_bits(session.sync(TOKENS[:600]), logits)
    assert session.cached == 600


@pytest.mark.parametrize("shared", [0, 100, 511, 512, 700, 1024, 1100, 1299])
def test_another_end_is_bit_equal_to_a_cold_start(model: Transformer, shared: int) -> None:
    """A session goes back to a cut at most, so a restored prompt is cut like a cold one."""
    other = TOKENS[:shared] + token_ids(np.random.default_rng(2), 1250 - min(shared, 1200))
    warm, cold = new_session(model), new_session(model)
    warm.sync(TOKENS)
    expected = cold.sync(other)
    assert_bits(warm.sync(other), expected, "restored")
    assert warm.cached == max((cut for cut in (512, 1024) if cut <= shared), default=0)
    for token in TOKENS[:3]:
        assert_bits(warm.advance(token), cold.advance(token), "decoded after it")


def test_a_longer_prompt_after_a_short_one(model: Transformer) -> None:
    """The first ended between cuts, so its end is a cut of its own: tolerance, not bits."""
    warm, cold = new_session(model), new_session(model)
    warm.sync(TOKENS[:530])
    logits = warm.sync(TOKENS[:700])
    assert warm.cached == 530
    assert_close(logits, cold.sync(TOKENS[:700]), PARTITION)


def test_the_end_of_a_prompt_is_no_restart_point(model: Transformer) -> None:
    """Else what a session was asked before would decide where a later prompt is cut."""
    warm, cold = new_session(model), new_session(model)
    warm.sync(TOKENS[:530])
    warm.sync(TOKENS[:700])
    other = TOKENS[:600] + TOKENS[:50]
    expected = cold.sync(other)
    assert_bits(warm.sync(other), expected)
    assert warm.cached == 512


def test_a_prefix_of_what_was_seen(model: Transformer) -> None:
    warm, cold = new_session(model), new_session(model)
    warm.sync(TOKENS)
    expected = cold.sync(TOKENS[:900])
    assert_bits(warm.sync(TOKENS[:900]), expected)
    assert (warm.cached, warm.tokens) == (512, TOKENS[:900])
    assert_bits(warm.sync(TOKENS[:512]), new_session(model).sync(TOKENS[:512]), "up to a cut exactly")


def test_decoded_tokens_are_part_of_the_sequence(model: Transformer) -> None:
    session = new_session(model)
    session.sync(TOKENS[:50])
    for token in TOKENS[50:60]:
        last = session.advance(token)
    assert_bits(session.sync(TOKENS[:60]), last)
    assert session.cached == 60
    assert_close(last, new_session(model).sync(TOKENS[:60]), PARTITION)


def test_progress_counts_to_the_end(model: Transformer) -> None:
    session, seen = new_session(model), []
    session.sync(TOKENS[:700])
    session.sync(TOKENS[:1300], lambda done, total: seen.append((done, total)))
    assert seen == [(324, 600), (600, 600)]


@pytest.mark.parametrize("wrong", [[], [0, 384], [-1]])
def test_bad_tokens_are_refused_before_anything_changes(model: Transformer, wrong: list[int]) -> None:
    session = new_session(model)
    logits = session.sync(TOKENS[:20])
    with pytest.raises(InputError):
        session.sync(wrong)
    assert session.tokens == TOKENS[:20]
    assert_bits(session.sync(TOKENS[:20]), logits)


def test_the_context_is_a_limit(model: Transformer) -> None:
    session = new_session(model, context=30)
    with pytest.raises(DoesNotFit, match="31 tokens, the context holds 30"):
        session.sync(TOKENS[:31])
    session.sync(TOKENS[:29])
    session.advance(9)
    with pytest.raises(DoesNotFit, match="full"):
        session.advance(9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_a_silent_device_failure_is_an_error(value: float) -> None:
    """Metal out of memory shows as NaN, infinity or zeros."""
    row = np.ones(8, np.float32)
    check_logits(row, 3)
    row[:] = value if value == 0 else row
    row[2] = value
    with pytest.raises(ModelOutputError, match="token 3"):
        check_logits(row, 3)


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0])
def test_a_device_that_fails_in_an_answer_is_noticed_with_the_token(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Beside what was drawn from the row; nothing of the session is kept."""
    session = new_session(tiny_model())
    session.sync([5, 6])
    row = np.full(session.vocabulary, value if value == 0 else 1, np.float32)
    row[7] = value
    monkeypatch.setattr(Transformer, "logits", lambda self, x, last=False: mx.array(row)[None, None])
    drawn = mx.argmax(session.feed(8))
    with pytest.raises(ModelOutputError, match="token 2"):
        session.settle(drawn)
    assert session.tokens == []


def test_a_failing_model_is_noticed_in_sync_and_score(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.session()
    broken = mx.full((engine.config.vocab_size,), mx.nan)
    monkeypatch.setattr(Transformer, "logits", lambda self, x, last=False: broken[None, None])
    with pytest.raises(ModelOutputError):
        session.sync([5, 6])
    with pytest.raises(ModelOutputError):
        score(engine, [5, 6])


@pytest.mark.parametrize(("chunk", "decode"), [(None, 0), (16, 5), (500, 41)])
def test_score_is_every_row(engine: Engine, chunk: int | None, decode: int) -> None:
    tokens = token_ids(np.random.default_rng(4), 40)
    rows = score(engine, tokens, chunk=chunk, decode=decode)
    assert rows.shape == (40, engine.config.vocab_size) and rows.dtype == np.float32
    ends = {*range(chunk or 1000, 40 - decode, chunk or 1000), *range(max(0, 40 - decode), 40)}
    assert_bits(rows, run(engine.model, tokens, ends), "cut at the same places")


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == common_prefix([1, 2, 3], [1, 2]) == 2
    assert common_prefix([], [1]) == 0


def test_a_session_costs_what_the_limits_count() -> None:
    """Its state and the restart points that it keeps, after a prompt with more cuts than are kept."""
    model = tiny_model()
    session = Session(model, 8192, MARKERS, growth=512)
    session.sync(token_ids(np.random.default_rng(1), 14 * 512 + 7))
    kept = [ring for point in session._restart for ring in point.rings]
    held = {id(array): array.nbytes for array in [*session._state.arrays(), *kept]}
    counted = state_bytes(model.config, len(session.tokens), 4, 512)
    assert len(session._restart) == RESTART_POINTS
    assert 0.9 * counted.session < sum(held.values()) <= counted.session


@pytest.mark.parametrize(
    ("prompt", "most", "room"), [(28, None, 2), (28, 1, 1), (28, 9, 2), (30, None, 0), (40, 3, 0), (5, 0, 0)]
)
def test_room_for_an_answer(prompt: int, most: int | None, room: int) -> None:
    assert room_for_answer(prompt, 30, most) == room


def test_one_place_says_that_an_answer_has_no_room(model: Transformer) -> None:
    check_prompt(TOKENS[:29], 384, 30)
    with pytest.raises(DoesNotFit, match="30 tokens and fills the context"):
        check_prompt(TOKENS[:30], 384, 30)
    with pytest.raises(DoesNotFit, match="31 tokens, the context holds 30"):
        check_prompt(TOKENS[:31], 384, 30)
    with pytest.raises(InputError):
        check_prompt([], 384, 30)
    said = [path for path in PACKAGE.rglob("*.py") if "an answer has no room" in path.read_text("utf-8")]
    assert said == [PACKAGE / "engine/prompt_room.py"]


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": -1}, {"logprobs": 21}, {"logprobs": -1}, {"think_budget": -2}]
)
def test_limits_that_cannot_be_are_refused_where_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}, expected 0"):
        GenerationLimits(**wrong)
