"""Jobs beside each other on a real (tiny) model, step by step, without threads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_model import MARKERS, new_session, tiny_model, token_ids

from dsv4_mlx.engine.decode import Finished, PrefillProgress, Token
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import InputError, ModelOutputError
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.request import GenerationRequest, Unavailable
from dsv4_mlx.scheduler.scheduler import Scheduler
from scheduler.tiny import ENDLESS, Heard, TinyBackend, add, alone, drain, job, runner


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


@pytest.fixture
def backend(model: Transformer) -> TinyBackend:
    return TinyBackend(model)


def test_events_come_in_order(backend: TinyBackend, rng: np.random.Generator) -> None:
    prompt = token_ids(rng, 700)
    one = runner(backend)
    _, heard = add(one, job(prompt, 3))
    drain(one)
    assert heard.events[:3] == [PrefillProgress(done, 700, 0) for done in (0, 512, 700)]
    assert [type(event) for event in heard.events[3:]] == [Token] * 3 + [Finished]
    assert heard.end == Finished("length")
    assert (one.counts.prompt, one.counts.cached, one.counts.generated) == (700, 0, 3)


def test_neighbours_change_no_token(
    backend: TinyBackend, model: Transformer, rng: np.random.Generator
) -> None:
    """Same seed, same tokens: alone, and while other prompts are prefilled and decoded in between."""
    jobs = [job(token_ids(rng, size), 12, seed=seed) for seed, size in enumerate((40, 700, 300, 1100, 5))]
    one = runner(backend, active=3)
    heard = [add(one, each)[1] for each in jobs]
    drain(one)
    assert [each.tokens for each in heard] == [alone(model, each) for each in jobs]


def test_jobs_are_interleaved(backend: TinyBackend, rng: np.random.Generator) -> None:
    order: list[str] = []
    times = itertools.count()
    one = Scheduler(
        backend, SchedulerOptions(active=2), lambda: float(next(times))
    )  # every step costs the same
    for name in "ab":
        heard = Heard(functools.partial(lambda name, _: order.append(name), name))
        add(one, job(token_ids(rng, 20), 30), heard)
    drain(one)
    half = order[: len(order) // 2]
    assert abs(half.count("a") - half.count("b")) <= 4


def test_a_small_request_does_not_wait_for_a_long_prefill(
    backend: TinyBackend, rng: np.random.Generator
) -> None:
    one = runner(backend)
    _, long = add(one, job(token_ids(rng, 3000), 1))
    for _ in range(3):
        one.step()
    _, short = add(one, job(token_ids(rng, 30), 1))
    while short.end is None:
        one.step()
    assert long.end is None and not long.tokens
    drain(one)
    assert long.tokens


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] * (seed > 2)) for seed in range(6)]
)
def test_cancelled_at_any_moment(model: Transformer, seed: int) -> None:
    """At most one step follows; what was computed serves the next prompt, and the bits are the same."""
    rng = np.random.default_rng(seed)
    prompt = token_ids(rng, 1500)
    one = runner(TinyBackend(model))
    neighbour = job(token_ids(rng, 100), 20, seed=3)
    _, beside = add(one, neighbour)
    asked = job(prompt, 10, seed=seed)
    entry, heard = add(one, asked)
    for _ in range(int(rng.integers(0, 24))):
        one.step()
    entry.cancelled = True
    before = len(heard.events)
    one.step()
    ended = heard.end
    assert ended is not None and ended.reason in ("cancelled", "length")
    assert len(heard.events) <= before + 1
    known = [event for event in heard.events if isinstance(event, PrefillProgress)]
    _, again = add(one, asked)
    drain(one)
    assert again.tokens == alone(model, asked)
    assert beside.tokens == alone(model, neighbour)
    if known and heard.tokens == []:
        assert again.cached == known[-1].done, "the part that was prefilled is used"


def test_cancelled_between_layers(model: Transformer, rng: np.random.Generator) -> None:
    """A chunk of a paged model may take long: it is left before it is done."""
    one = runner(TinyBackend(model))
    asked = job(token_ids(rng, 1500), 10)
    entry, heard = add(one, asked)
    layers, second = 0, False

    def notice(check: Callable[[], None]) -> Callable[[], None]:
        def counted() -> None:
            nonlocal layers
            layers += 1
            entry.cancelled = second and layers == 2
            check()

        return counted

    entry.check = notice(entry.check)  # type: ignore[method-assign]
    one.step()
    one.step()
    lease, layers, second = entry.lease, 0, True
    assert lease is not None
    one.step()
    assert heard.events[-1] == Finished("cancelled")
    assert layers == 2
    assert len(lease.session.tokens) == 512, "what was computed before is kept"
    _, again = add(one, asked)
    drain(one)
    assert again.tokens == alone(model, asked)
    assert again.cached == 512


def test_cancelled_within_a_token(model: Transformer, rng: np.random.Generator) -> None:
    """The token is finished, and the session keeps all it knows."""
    one = runner(TinyBackend(model))
    asked = job(token_ids(rng, 40), 10)
    entry, heard = add(one, asked)
    while not heard.tokens:
        one.step()
    lease, known = entry.lease, len(asked.prompt)
    assert lease is not None
    step = model.step

    def cancelling(*given: Any) -> Any:
        entry.cancelled = True  # after the step has begun
        return step(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "step", cancelling)
        one.step()
    one.step()
    assert heard.events[-1] == Finished("cancelled")
    assert len(lease.session.tokens) > known, "what was computed is kept"


def test_cancelled_while_waiting(backend: TinyBackend, rng: np.random.Generator) -> None:
    one = runner(backend, active=1)
    add(one, job(token_ids(rng, 20), 50))
    one.step()
    entry, heard = add(one, job(token_ids(rng, 20), 50))
    entry.cancelled = True
    one.step()
    assert heard.events == [Finished("cancelled")]


def test_patience_ends(backend: TinyBackend, rng: np.random.Generator) -> None:
    one = runner(backend, active=1, patience=0.0)
    one.waiting.add(entry := add(runner(backend), job([9]))[0], "")
    one.step()
    heard = entry.emit
    assert isinstance(heard, Heard) and heard.end is not None
    assert isinstance(heard.end.error, Unavailable)


def test_a_job_that_fails_leaves_the_others_alone(
    backend: TinyBackend, model: Transformer, rng: np.random.Generator
) -> None:
    bad = job(token_ids(rng, 20), 50, hint="bad")
    count = 0

    def fails(job: GenerationRequest) -> None:
        nonlocal count
        count += job is bad
        if job is bad and count == 7:
            raise InputError("the constraint can't go on")

    backend.before_step = fails
    one = runner(backend)
    good = job(token_ids(rng, 30), 20)
    _, failed = add(one, bad)
    _, beside = add(one, good)
    drain(one)
    assert failed.end is not None and isinstance(failed.end.error, InputError)
    assert beside.tokens == alone(model, good)
    assert (one.counts.failures, one.broken) == (0, None)
    assert len(one.pool.held) == 2, "the session of the failed one is sound"


def test_two_device_failures_in_a_row_end_trust(
    backend: TinyBackend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(one: Scheduler) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Transformer, "logits", lambda self, x, last: x[..., 0, :] * float("nan"))
            _, heard = add(one, job(token_ids(rng, 20)))
            drain(one)
        assert heard.end is not None and isinstance(heard.end.error, ModelOutputError)

    one = runner(backend)
    failed(one)
    assert one.broken is None and one.pool.held == []
    add(one, job(token_ids(rng, 20)))
    drain(one)
    failed(one)
    assert one.broken is None, "one worked in between"
    failed(one)
    assert isinstance(one.broken, ModelOutputError)
    assert (one.counts.failures, backend.recovered) == (3, 3)


def test_a_listener_that_raises_ends_its_job_only(backend: TinyBackend, rng: np.random.Generator) -> None:
    def gone(event: object) -> None:
        raise RuntimeError("the loop is closed")

    one = runner(backend)
    add(one, job(token_ids(rng, 20), 1000), Heard(gone))
    _, beside = add(one, job(token_ids(rng, 20), 5))
    drain(one)
    assert beside.end == Finished("length") and one.counts.finished["cancelled"] == 1


def test_log_probabilities_are_the_models_own(
    backend: TinyBackend, model: Transformer, rng: np.random.Generator
) -> None:
    """Against a softmax in float64, before bias and temperature. A bias decides what is drawn."""
    prompt = token_ids(rng, 40)
    sampling = SamplingOptions(temperature=0.3, logit_bias={**ENDLESS, 77: 800.0})
    one = runner(backend)
    _, heard = add(one, GenerationRequest(tuple(prompt), sampling, 3, logprobs=5))
    drain(one)
    session = new_session(model)
    logits = session.sync(prompt).astype(np.float64)
    for event in heard.events:
        if isinstance(event, Token):
            expected = np.log(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
            order = np.argsort(-expected, kind="stable")[:5]
            assert event.id == 77 and event.logprob == pytest.approx(expected[77], abs=1e-5)
            assert [i for i, _ in event.top] == order.tolist()
            assert [p for _, p in event.top] == pytest.approx(expected[order].tolist(), abs=1e-5)
            logits = session.advance(event.id).astype(np.float64)


def test_thinking_ends_at_its_budget(backend: TinyBackend, rng: np.random.Generator) -> None:
    prompt = (*token_ids(rng, 30), MARKERS.assistant, MARKERS.think)
    one = runner(backend)
    never = SamplingOptions(seed=5, logit_bias={**ENDLESS, MARKERS.end_think: -900.0})
    _, heard = add(one, GenerationRequest(prompt, never, 20, think_budget=6))
    _, at_once = add(one, GenerationRequest(prompt, never, 5, think_budget=0))
    _, not_thinking = add(one, GenerationRequest((*prompt[:-1], MARKERS.end_think), never, 5, think_budget=0))
    drain(one)
    assert heard.tokens.index(MARKERS.end_think) == 6 and heard.tokens.count(MARKERS.end_think) == 1
    assert at_once.tokens.index(MARKERS.end_think) == 0 and at_once.tokens.count(MARKERS.end_think) == 1
    assert MARKERS.end_think not in not_thinking.tokens


def test_chunks_go_together_only_while_nobody_waits(model: Transformer, rng: np.random.Generator) -> None:
    """Whoever pages experts takes several chunks at once: the same bits, but a long step."""
    prompt, other = token_ids(rng, 1100), job(token_ids(rng, 5), 12)
    found = {}
    for name, several, busy in (("apart", 1, False), ("together", 2, False), ("beside", 2, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.schedule, "chunks_per_step", several)
            one = runner(TinyBackend(model))
            if busy:
                add(one, other)
                one.step()
            _, heard = add(one, job(prompt, 3))
            drain(one)
        steps = [event.done for event in heard.events if isinstance(event, PrefillProgress)]
        found[name] = steps, heard.tokens
    assert found["apart"][0] == [0, 512, 1024, 1100]
    assert found["together"][0] == [0, 1024, 1100]
    assert found["beside"][0][:2] == [0, 512]
    assert found["apart"][1] == found["together"][1] == found["beside"][1]
