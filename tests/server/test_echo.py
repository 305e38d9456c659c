"""`echo` with log probabilities: what evaluation programs score with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any

import numpy as np
import openai
import pytest
from server.client import call, until
from server.conftest import Replayed, Serve
from server.fakes import CHECKPOINT

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.scheduler.backend import ModelBackend
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.server.app import make_app, model_facts
from dsv4_mlx.server.options import ServerOptions

PATH = "/v1/completions"
TEXT = "Run dsv4-mlx with a folder. It answers."


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(CHECKPOINT, EngineOptions(context=512))


@pytest.fixture
def port(serve_app: Serve) -> Iterator[int]:
    """A server with the demo's weights."""
    options = ServerOptions(port=0)
    facts = model_facts(CHECKPOINT, "dsv4-demo", options, 512, None)
    worker = EngineThread(ModelBackend(CHECKPOINT, EngineOptions(context=512))).start()
    threads = ThreadPoolExecutor(2)
    app = make_app(CHECKPOINT, facts, worker, threads, lambda detail: pytest.fail(detail))
    listener = serve_app(app, options)
    assert until(lambda: worker.state == "ready", 60)
    yield listener.port
    worker.close(0)
    assert until(lambda: listener.busy == 0)
    threads.shutdown()


def expected(engine: Engine, ids: list[int]) -> list[float]:
    """ln p of each token after the first, token by token: none of the code that is tested."""
    session, found = engine.session(), []
    for last, token in zip(ids, ids[1:], strict=False):
        row = np.array(session.advance(last), np.float64)
        found.append(float(row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()))
    return found


def test_each_token_of_the_prompt_has_the_models_own_log_probability(engine: Engine, port: int) -> None:
    ids = engine.prompts.spelling.begun(TEXT)
    wanted = expected(engine, ids)
    body = {"prompt": TEXT, "max_tokens": 1, "echo": True, "logprobs": 2, "temperature": 0}
    for _ in range(2):  # the second time the prompt is known already
        reply = call(port, "POST", PATH, body).json()
        choice = openai.types.Completion.model_validate(reply).choices[0]
        said = choice.logprobs
        assert said is not None and said.tokens is not None and said.token_logprobs is not None
        assert choice.text.startswith(TEXT) and "".join(said.tokens[: len(ids) - 1]) == TEXT
        np.testing.assert_allclose(said.token_logprobs[: len(ids) - 1], wanted, atol=2e-3)
        assert said.text_offset is not None and said.top_logprobs is not None
        assert all(choice.text[at:].startswith(token) for at, token in zip(said.text_offset, said.tokens))  # noqa: B905
        assert all(len(top) == 2 for top in said.top_logprobs[: len(ids) - 1])


def lm_eval_score(answer: dict[str, Any], context: int) -> tuple[float, bool]:
    """As lm-evaluation-harness reads it (LocalCompletionsAPI.parse_logprobs): the last is the new token."""
    (choice,) = sorted(answer["choices"], key=itemgetter("index"))
    values = choice["logprobs"]["token_logprobs"][context:-1]
    tokens = choice["logprobs"]["tokens"][context:-1]
    tops = choice["logprobs"]["top_logprobs"][context:-1]
    return sum(values), all(token == max(top, key=top.get) for token, top in zip(tokens, tops, strict=True))


def test_an_evaluation_scores_as_the_model_does(engine: Engine, port: int) -> None:
    spelling = engine.prompts.spelling
    context, answer = spelling.begun("It runs on a"), spelling.encode(" Mac with memory")
    ids = [*context, *answer]
    body = {"prompt": [ids], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
    score, _ = lm_eval_score(call(port, "POST", PATH, body).json(), len(context))
    assert score == pytest.approx(sum(expected(engine, ids)[len(context) - 1 :]), abs=5e-3)
    greedy: list[int] = []
    session = engine.session()
    row = session.sync(context)
    for _ in range(4):
        greedy.append(int(np.argmax(row)))
        row = session.advance(greedy[-1])
    body["prompt"] = [[*context, *greedy]]
    assert lm_eval_score(call(port, "POST", PATH, body).json(), len(context))[1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_that_ends_at_once_has_its_end_as_the_new_token(
    replay: Callable[..., Replayed], stream: bool
) -> None:
    running = replay({"content": ""})
    body = {"prompt": "a b", "max_tokens": 1, "echo": True, "logprobs": 1, "stream": stream}
    reply = call(running.port, "POST", PATH, body)
    if stream:
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    else:
        tokens = reply.json()["choices"][0]["logprobs"]["tokens"]
    assert "".join(tokens) == "a b<｜end▁of▁sentence｜>"


def test_a_prompt_of_tokens_is_echoed_as_text(replay: Callable[..., Replayed]) -> None:
    running = replay({"content": " end"})
    ids = call(running.port, "POST", "/tokenize", {"content": TEXT}).json()["tokens"]
    choice = call(running.port, "POST", PATH, {"prompt": ids, "echo": True}).json()["choices"][0]
    assert choice["text"] == TEXT + " end" and choice["logprobs"] is None
