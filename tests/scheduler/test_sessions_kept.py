"""What the next prompt finds of the last ones, and the memory it takes."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from small_model import new_session, tiny_model, token_ids

from dsv4_mlx.config import parse_config
from dsv4_mlx.engine.session import Session
from dsv4_mlx.hub.models import model_folder
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler.replay import SilentModel
from dsv4_mlx.scheduler.session_pool import Lease, SessionPool
from dsv4_mlx.tokenizer.template import Prompts, Role, Think
from scheduler.tiny import ScriptedBackend, TinyBackend, add, alone, drain, job, runner


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.fixture
def small_is_512(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boundary between small and large requests, where a test needs both: a tiny model is not fast."""
    monkeypatch.setattr("dsv4_mlx.scheduler.session_policy.SMALL", 512)
    monkeypatch.setattr("dsv4_mlx.scheduler.session_pool.SMALL", 512)


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4_mlx.scheduler.session_policy.SMALL", 8)
    monkeypatch.setattr("dsv4_mlx.scheduler.session_pool.SMALL", 8)


@pytest.fixture
def backend(model: Transformer) -> TinyBackend:
    return TinyBackend(model)


def test_the_longest_prefix_is_reused_and_reported(
    backend: TinyBackend, model: Transformer, rng: np.random.Generator
) -> None:
    prompt = token_ids(rng, 600)
    one = runner(backend)
    _, first = add(one, job(prompt, 5))
    drain(one)
    longer = prompt + first.tokens + token_ids(rng, 30)
    _, second = add(one, job(longer, 5))
    drain(one)
    assert second.cached == 605 and len(one.pool.held) == 1
    other = prompt[:550] + token_ids(rng, 100)
    asked = job(other, 5, seed=4)
    _, third = add(one, asked)
    drain(one)
    assert third.cached == 512
    assert third.tokens == alone(model, asked), "from a cut on, the bits are those of a cold start"


@pytest.mark.usefixtures("small_is_512")
def test_what_is_in_use_or_long_is_branched_from(
    backend: TinyBackend, model: Transformer, rng: np.random.Generator
) -> None:
    prompt = token_ids(rng, 600)
    one = runner(backend)
    a, b = job(prompt + token_ids(rng, 600), 12), job(prompt + token_ids(rng, 30), 8, seed=1)
    _, first = add(one, a)
    while not first.tokens:
        one.step()
    _, second = add(one, b)
    drain(one)
    assert second.cached == 512 and one.pool.branches == 1
    assert (first.tokens, second.tokens) == (alone(model, a), alone(model, b))
    c = job(prompt + token_ids(rng, 5), 4, seed=2)
    _, third = add(one, job(list(a.prompt) + first.tokens + [9], 2))
    drain(one)
    assert third.cached == len(a.prompt) + 12, "the long one is still there"
    _, fourth = add(one, c)
    drain(one)
    assert fourth.tokens == alone(model, c)


@pytest.mark.usefixtures("all_are_large")
def test_memory_for_one_long_job_serialises_long_ones(
    model: Transformer, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may come to need the whole context: one after the other, and none fails. Who waits is asked
    about again when something has changed, not at each token: it is compared with every session then."""
    backend = ScriptedBackend(model, budget=0, context=1040)
    one = runner(backend, active=2)
    asked: list[int] = []
    acquire = SessionPool.acquire

    def counted(self: SessionPool, prompt: Sequence[int], most: int) -> Lease | None:
        asked.append(len(prompt))
        return acquire(self, prompt, most)

    monkeypatch.setattr(SessionPool, "acquire", counted)
    jobs = [job(token_ids(rng, size), 1040 - size, seed=size) for size in (1000, 900, 950)]
    heard = [add(one, each)[1] for each in jobs]
    limits = one.pool.limits
    while one.active or len(one.waiting):
        one.step()
        assert sum(held.bytes for held in one.pool.held) <= limits.budget + limits.side
        assert len(one.active) <= 1
    assert [each.tokens for each in heard] == [backend.script(each) for each in jobs]
    assert asked == [1000, 900, 950, 900, 950, 950]


@pytest.mark.usefixtures("all_are_large")
def test_a_job_that_needs_anothers_memory_waits_and_goes_on(
    model: Transformer, rng: np.random.Generator
) -> None:
    """Two jobs come in because they could end one after another; side by side they do not fit."""
    backend = ScriptedBackend(model, context=512, growth=128)
    cost = backend.limits(2).cost
    backend.budget = cost(128) + cost(384)
    one = runner(backend, active=2)
    jobs = [job(token_ids(rng, 20), 240, seed=seed) for seed in (1, 2)]
    heard = [add(one, each)[1] for each in jobs]
    waited = False
    while one.active or len(one.waiting):
        one.step()
        waited |= any(entry.blocked for entry in one.active)
    assert waited and [each.tokens for each in heard] == [backend.script(each) for each in jobs]


@pytest.mark.usefixtures("small_is_512")
def test_a_side_request_between_two_turns_costs_the_long_session_nothing(
    model: Transformer, rng: np.random.Generator
) -> None:
    backend = TinyBackend(model, budget=0, context=1536)
    one = runner(backend)
    long = token_ids(rng, 1450)
    _, first = add(one, job(long, 10))
    drain(one)
    for size in (300, 500, 40):
        add(one, job(token_ids(rng, size), 20))
        drain(one)
    _, second = add(one, job(long + first.tokens + token_ids(rng, 20), 4))
    drain(one)
    assert second.cached == 1460


def test_a_branch_holds_no_more_rows_than_it_needs(model: Transformer, rng: np.random.Generator) -> None:
    long = new_session(model, growth=256)
    tokens = token_ids(rng, 1300)
    long.sync(tokens)
    other = tokens[:600] + token_ids(rng, 20)
    twin: Session = long.fork_at(other)
    assert (twin.tokens, twin.capacity) == (tokens[:512], 512) and long.tokens == tokens
    assert np.array_equal(twin.sync(other), new_session(model).sync(other))
    assert np.array_equal(long.sync([*tokens, 9]), _continued(model, tokens))


def _continued(model: Transformer, tokens: list[int]) -> np.ndarray:
    session = new_session(model, growth=256)
    session.sync(tokens)
    return session.sync([*tokens, 9])


def test_sessions_take_no_more_memory_than_is_counted(model: Transformer, rng: np.random.Generator) -> None:
    """Real bytes beside the ones that limits are made of; and evicted sessions give theirs back."""
    backend = TinyBackend(model, budget=0, context=1024)
    one = runner(backend)
    add(one, job(token_ids(rng, 520), 2))  # tables that the model makes once
    drain(one)
    one.pool = SessionPool(one.pool.limits, backend.session)
    before = real_memory()
    for _ in range(5):
        add(one, job(token_ids(rng, 520), 2))
        drain(one)
        counted = sum(held.bytes for held in one.pool.held)
        limits = one.pool.limits
        assert 0 < real_memory() - before <= counted <= limits.budget + limits.side
    assert one.pool.evictions >= 3
    one.pool = SessionPool(one.pool.limits, backend.session)
    assert real_memory() - before <= 64 << 10


def real_memory() -> int:
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


@pytest.fixture
def scripted() -> tuple[Prompts, ScriptedBackend]:
    """The demo's prompts, and sessions that take them in without computing."""
    folder = model_folder("demo")
    silent: Any = SilentModel(parse_config((folder / "config.json").read_text("utf-8"), folder))
    prompts, backend = Prompts(folder, "april"), ScriptedBackend(silent)
    backend.markers = prompts.markers
    return prompts, backend


def talk(prompts: Prompts, system: list[int], said: list[tuple[Role, str]], think: Think = "on") -> list[int]:
    """A prompt whose instructions are the tokens `system`, all of which are words of their own."""
    text = "".join(f" {word}" for word in system)
    return prompts.encode(prompts.talk([("system", text), *said], think))


@pytest.mark.parametrize("words", [20, 55, 103, 170, 488, 968])
def test_a_second_question_finds_the_instructions(
    words: int, scripted: tuple[Prompts, ScriptedBackend]
) -> None:
    """From 64 tokens on, whatever their length: nothing of them is computed twice."""
    prompts, backend = scripted
    one = runner(backend)
    first, second = (talk(prompts, list(range(words)), [("user", f"{what}?")]) for what in ("Why", "How"))
    block = first.index(prompts.markers.user)
    add(one, job(first, 4))
    drain(one)
    _, heard = add(one, job(second, 4))
    drain(one)
    assert heard.cached == (block + 1 if block >= 64 else 0), f"instructions of {block} tokens"


def test_turns_that_think_compute_what_is_new(scripted: tuple[Prompts, ScriptedBackend]) -> None:
    """Rendered again, a turn has lost its thinking: at most 64 tokens before it are computed again."""
    prompts, backend = scripted
    one = runner(backend, sessions=1)
    said: list[tuple[Role, str]] = []
    known = 0
    for turn in range(10):
        said.append(("user", f"question {turn} " * (3 + 11 * turn % 70)))
        prompt = talk(prompts, list(range(100)), said)
        _, heard = add(one, job(prompt, 40, seed=turn))
        drain(one)
        assert turn == 0 or known - heard.cached <= 64
        known = len(prompt) - 1  # but the think marker
        said.append(("assistant", f"answer {turn} " * (2 + 7 * turn % 90)))
