"""The engine thread as others see it: loading, queue, cancelling, health, closing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import numpy as np
import pytest
from small_model import tiny_model, token_ids

from dsv4_mlx.engine.decode import Finished, PrefillProgress, Token
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.errors import DoesNotFit, InputError, Progress, UsageError
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.request import GenerationRequest, QueueFull, Unavailable
from dsv4_mlx.scheduler.session_pool import SessionPool
from scheduler.tiny import Heard, ScriptedBackend, TinyBackend, alone, job


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def started(backend: TinyBackend, **options: int) -> EngineThread:
    worker = EngineThread(backend, SchedulerOptions(**options)).start()
    until(lambda: str(worker.state) == "ready")
    return worker


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def test_jobs_from_many_threads(model: Transformer, rng: np.random.Generator) -> None:
    backend = TinyBackend(model)
    worker = started(backend, active=3, waiting=20)
    jobs = [job(token_ids(rng, 30 + 10 * i), 6, seed=i) for i in range(8)]
    heard = [Heard() for _ in jobs]
    threads = [threading.Thread(target=worker.submit, args=pair) for pair in zip(jobs, heard, strict=True)]
    for thread in threads:
        thread.start()
    found = [each.wait().tokens for each in heard]
    stats = worker.stats()
    assert worker.close(5) and str(worker.state) == "closed" and backend.closed
    tokens, prompts = [], []
    for each in jobs:
        session = backend.session()
        tokens.append(list(generate(session, list(each.prompt), each.sampling, max_tokens=6)))
        prompts.append(len(each.prompt))
    assert found == tokens
    assert (stats.submitted, stats.finished["length"], stats.generated_tokens) == (8, 8, 48)
    assert stats.prompt_tokens == sum(prompts) and stats.active == stats.queued == 0


def test_loading_is_said_and_can_be_left(model: Transformer) -> None:
    backend = TinyBackend(model)
    go = threading.Event()

    def slowly(progress: Progress) -> None:
        progress(3, 10)
        go.wait(20)
        progress(10, 10)

    backend.before_open = slowly
    worker = EngineThread(backend).start()
    until(lambda: worker.loaded == (3, 10))
    assert worker.state == "loading" and worker.probe(0.1).state == "loading"
    with pytest.raises(Unavailable, match="still loading"):
        worker.submit(job([9]), Heard())
    go.set()
    until(lambda: str(worker.state) == "ready")
    assert worker.probe(10).answered
    worker.close(0)
    other = TinyBackend(model)

    def briefly(progress: Progress) -> None:
        time.sleep(0.05)
        progress(1, 2)

    other.before_open = briefly
    left = EngineThread(other).start()
    assert left.close(0) and left.state == "closed"


def test_a_model_that_does_not_open_is_unhealthy(model: Transformer) -> None:
    backend = TinyBackend(model)

    def fails(progress: Progress) -> None:
        raise InputError("no such model")

    backend.before_open = fails
    worker = EngineThread(backend).start()
    until(lambda: worker.state == "unhealthy")
    assert isinstance(worker.error, InputError)
    with pytest.raises(Unavailable, match="out of order"):
        worker.submit(job([9]), Heard())
    assert worker.stats().refused == 1
    assert worker.close(1)


def test_other_work_runs_between_two_steps_in_the_engines_thread(model: Transformer) -> None:
    seen: list[object] = []
    backend = TinyBackend(model)
    backend.before_open = lambda progress: time.sleep(0.05)
    worker = EngineThread(backend, watch=lambda: seen.append(worker.state))
    early = worker.call(lambda pool: (threading.current_thread().name, len(pool.held)))
    heard = Heard(lambda event: seen.append(type(event)))
    worker.start()
    assert early.result(30) == ("engine", 0), "it waits until the model is open"
    worker.submit(job([9] * 20, 400), heard)
    until(lambda: Token in seen)
    failing = worker.call(lambda pool: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(30)
    found = worker.call(lambda pool: [one.tokens for one in pool.held]).result(30)
    assert len(found) == 1 and heard.end is None, "while the job runs"
    last = worker.call(lambda pool: len(pool.idle))
    assert worker.close(0) and last.result(0) == 0, "what was ordered before the end is done"
    assert worker.call(lambda pool: 1).cancelled()
    assert [state for state in seen if isinstance(state, str)] == ["ready", "closed"]


def test_work_for_a_model_that_does_not_open_is_cancelled(model: Transformer) -> None:
    backend = TinyBackend(model)

    def fails(progress: Progress) -> None:
        raise InputError("no such model")

    backend.before_open = fails
    worker = EngineThread(backend)
    work = worker.call(lambda pool: 1)
    worker.start()
    with pytest.raises(CancelledError):
        work.result(30)
    assert worker.close(1)


def test_a_session_from_elsewhere_is_gone_on_with(model: Transformer, rng: np.random.Generator) -> None:
    prompt = token_ids(rng, 40)
    worker = started(backend := TinyBackend(model))

    def adopt(pool: SessionPool) -> None:
        session = backend.session()
        session.sync(prompt[:30])
        pool.adopt(session)
        assert [one.tokens for one in pool.idle] == [prompt[:30]]

    worker.call(adopt).result(30)
    heard = Heard()
    worker.submit(job(prompt, 4), heard)
    assert heard.wait().cached == 30 and heard.tokens == alone(model, job(prompt, 4))
    assert worker.close(1)


def test_a_full_queue_is_refused(model: Transformer, rng: np.random.Generator) -> None:
    worker = started(TinyBackend(model), active=1, waiting=2)
    heard = [Heard() for _ in range(3)]
    tickets = [worker.submit(job(token_ids(rng, 20), 4000), each) for each in heard]
    with pytest.raises(QueueFull) as refused:
        worker.submit(job([9]), Heard())
    assert refused.value.retry_after > 0
    for ticket in tickets:
        ticket.cancel()
        ticket.cancel()
    for each in heard:
        assert each.wait().end == Finished("cancelled")
    worker.submit(job(token_ids(rng, 5), 2), last := Heard())
    assert last.wait().end == Finished("length")
    tickets[0].cancel()
    worker.close(1)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (GenerationRequest(()), InputError),
        (GenerationRequest((9, 384)), InputError),
        (GenerationRequest((9,) * 4097), DoesNotFit),
        (GenerationRequest((9,) * 4096), DoesNotFit),
        (GenerationRequest((9,), logprobs=21), UsageError),
        (GenerationRequest((9,), max_tokens=-1), UsageError),
        (GenerationRequest((9,), think_budget=-1), UsageError),
        (GenerationRequest((9,), SamplingOptions(logit_bias={384: 1.0})), UsageError),
    ],
)
def test_jobs_that_can_never_run_are_refused(
    model: Transformer, wrong: GenerationRequest, error: type[Exception]
) -> None:
    worker = started(TinyBackend(model))
    with pytest.raises(error):
        worker.submit(wrong, Heard())
    assert worker.stats().submitted == 0
    worker.close(0)


def test_closing_lets_jobs_end_and_then_ends_them(model: Transformer, rng: np.random.Generator) -> None:
    worker = started(TinyBackend(model))
    worker.submit(job(token_ids(rng, 20), 10), short := Heard())
    worker.submit(job(token_ids(rng, 20), None), endless := Heard())
    until(lambda: endless.tokens)
    closing = threading.Thread(target=worker.close, args=(300.0,))
    closing.start()
    until(lambda: worker._closing is not None)
    with pytest.raises(Unavailable, match="shutting down"):
        worker.submit(job([9]), Heard())
    assert short.wait().end == Finished("length")
    assert worker.close(0.0), "a second call shortens the grace"
    closing.join()
    ended = endless.wait().end
    assert ended is not None and ended.reason == "error" and isinstance(ended.error, Unavailable)


def test_a_hanging_step_shows(
    model: Transformer, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TinyBackend(model)
    hangs, go = threading.Event(), threading.Event()

    def hang(job: GenerationRequest) -> None:
        if job.hint == "hangs":
            hangs.set()
            go.wait(20)

    backend.before_step = hang
    worker = started(backend)
    assert worker.probe(5).answered
    worker.submit(job(token_ids(rng, 5), 3, hint="hangs"), heard := Heard())
    hangs.wait(20)
    found = worker.probe(0.05)
    assert (found.state, found.answered) == ("ready", False), "a long prefill chunk looks the same"
    monkeypatch.setattr("dsv4_mlx.scheduler.engine_thread.STALLED", 0.0)
    assert worker.probe(0.05).state == "unhealthy"
    go.set()
    heard.wait()
    assert worker.probe(5).state == "ready"
    worker.close(1)


def stress(backend: TinyBackend, count: int, seed: int) -> list[tuple[GenerationRequest, Heard]]:
    """Jobs of every size from several threads, half of them cancelled at random moments.

    Returns what each said, after checking that all of them ended and nothing is left over.
    """
    rng, dice = np.random.default_rng(seed), random.Random(seed)
    worker = started(backend, active=4, waiting=count)
    stems = [token_ids(rng, size) for size in (40, 300, 600)]
    jobs = [
        job(dice.choice(stems)[: dice.randrange(1, 600)] + [100 + i], dice.choice([1, 5, 30]), seed=i)
        for i in range(count)
    ]
    heard = [Heard() for _ in jobs]
    cancelled = set(dice.sample(range(count), count // 2))
    delays = [dice.random() * 0.1 for _ in jobs]

    def client(mine: range) -> None:
        for i in mine:
            ticket = worker.submit(jobs[i], heard[i])
            if i in cancelled:
                time.sleep(delays[i])
                ticket.cancel()

    threads = [threading.Thread(target=client, args=(range(at, count, 4),)) for at in range(4)]
    for thread in threads:
        thread.start()
    for each in heard:
        each.wait(300)
    for thread in threads:
        thread.join()
    stats, limits = worker.stats(), backend.limits(8)
    assert worker.close(5)
    assert (stats.active, stats.queued, stats.failures) == (0, 0, 0)
    assert stats.submitted == sum(stats.finished.values()) == count
    assert stats.session_bytes <= limits.budget + limits.side
    for i, each in enumerate(heard):
        most = jobs[i].max_tokens
        assert each.end is not None
        assert len(each.tokens) == most if each.end.reason == "length" else i in cancelled
    return list(zip(jobs, heard, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_64_jobs_with_random_cancels(model: Transformer, seed: int) -> None:
    """Sessions that compute nothing: the bookkeeping alone, at speed."""
    backend = ScriptedBackend(model, budget=0, context=1024)
    for asked, heard in stress(backend, 64, seed):
        assert heard.tokens == backend.script(asked)[: len(heard.tokens)]


def said_alone(backend: TinyBackend, pairs: list[tuple[GenerationRequest, Heard]]) -> None:
    """Each says what it says alone; after tokens that were sampled before, only within tolerance."""
    for asked, heard in pairs:
        reused = next((event.cached for event in heard.events if isinstance(event, PrefillProgress)), 0)
        if heard.tokens and reused % 512 == 0:
            session = backend.session()
            expected = generate(session, list(asked.prompt), asked.sampling, max_tokens=len(heard.tokens))
            assert list(expected) == heard.tokens


def test_a_real_model_with_random_cancels(model: Transformer) -> None:
    backend = TinyBackend(model, budget=0, context=1024)
    said_alone(backend, stress(backend, 12, 1)[:6])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_a_real_model_with_64_jobs_and_random_cancels(model: Transformer, seed: int) -> None:
    backend = TinyBackend(model, budget=0, context=1024)
    said_alone(backend, stress(backend, 64, seed))


def test_a_thread_without_work_looks_after_memory(model: Transformer) -> None:
    """As often as the backend wants to, and not while there is work."""

    class Resting(TinyBackend):
        rests = 0
        wanted: float | None = None

        def rest(self) -> float | None:
            assert worker.stats().active == worker.stats().queued == 0
            self.rests += 1
            return self.wanted

    backend = Resting(model)
    worker = EngineThread(backend)
    worker.start()
    until(lambda: backend.rests == 1)
    backend.wanted = 0.001
    worker.call(lambda pool: None)
    until(lambda: backend.rests > 5)
    heard = Heard()
    worker.submit(job([9, 8, 7], 4), heard)
    assert len(heard.wait().tokens) == 4
    before = backend.rests
    until(lambda: backend.rests > before)
    assert worker.close(5)
