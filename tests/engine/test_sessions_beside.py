"""Answers don't depend on neighbours; stop ids and stop strings end them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from small_model import MARKERS, new_session, tiny_model, token_ids

from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.errors import UsageError
from dsv4_mlx.model.transformer import Transformer

OPTIONS = SamplingOptions(
    seed=7, temperature=1.2, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2,
    logit_bias={MARKERS.end: -100.0},  # an answer of random weights would end anywhere
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def start(model: Transformer, prompt: list[int], options: SamplingOptions = OPTIONS) -> Iterator[int]:
    return generate(new_session(model), prompt, options)


def test_same_seed_same_tokens_beside_other_sessions(model: Transformer, rng: np.random.Generator) -> None:
    prompts = [token_ids(rng, count) for count in (9, 140, 33)]
    alone = [list(islice(start(model, prompt), 40)) for prompt in prompts]
    assert len({tuple(tokens) for tokens in alone}) == 3
    # The same three at once, and a fourth that comes and goes.
    runs = [start(model, prompt) for prompt in prompts]
    beside: list[list[int]] = [[], [], []]
    for step in range(40):
        for found, run in zip(beside, runs, strict=True):
            found.append(next(run))
        if step % 7 == 0:
            list(islice(start(model, prompts[1][: step + 1], SamplingOptions(seed=step)), 3))
    assert beside == alone


def test_a_fork_answers_like_the_session_it_came_from(model: Transformer, rng: np.random.Generator) -> None:
    prompt = token_ids(rng, 20)
    session = new_session(model)
    session.sync(prompt)
    twin = session.fork()
    assert list(islice(generate(session, prompt, OPTIONS), 20)) == list(
        islice(generate(twin, prompt, OPTIONS), 20)
    )


def test_a_stop_id_ends_the_answer_and_is_left_out(model: Transformer, rng: np.random.Generator) -> None:
    prompt = token_ids(rng, 12)
    free = list(islice(start(model, prompt), 12))
    stop = free[8]
    options = SamplingOptions(**{**vars(OPTIONS), "stop_ids": frozenset({stop})})
    assert list(start(model, prompt, options)) == free[: free.index(stop)]


def test_ids_the_model_has_not_are_refused(model: Transformer) -> None:
    with pytest.raises(UsageError, match="logit-bias is for token 384"):
        next(start(model, [9], SamplingOptions(logit_bias={384: 1.0})))
