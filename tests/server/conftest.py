"""A server on a real port, in a thread of this process, with a scripted worker behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server.fakes import CHECKPOINT, VOCABULARY, FakeWorker, PlainTurns, Script

from dsv4_mlx.chat.prompt import Prompts
from dsv4_mlx.chat.spelling import Spelling
from dsv4_mlx.constrain.grammars import Grammars
from dsv4_mlx.server.app import App
from dsv4_mlx.server.ask import Facts
from dsv4_mlx.server.deliver import Counter
from dsv4_mlx.server.intake import Intake
from dsv4_mlx.server.options import MODEL_ID, ServerOptions
from dsv4_mlx.server.record import Record
from dsv4_mlx.server.run import listen, make_server
from dsv4_mlx.server.setup import make_app, model_facts
from dsv4_mlx.serving.replay import ReplayBackend
from dsv4_mlx.serving.script import read_script
from dsv4_mlx.serving.worker import Worker


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    return Prompts(CHECKPOINT, "april")


@pytest.fixture(scope="session")
def spelling() -> Spelling:
    return Spelling(CHECKPOINT)


@pytest.fixture(scope="session")
def grammars(prompts: Prompts) -> Iterator[Grammars]:
    made = Grammars(CHECKPOINT, VOCABULARY, prompts.markers)
    yield made
    made.close()


@pytest.fixture
def facts(prompts: Prompts) -> Facts:
    return Facts(ServerOptions(), MODEL_ID, prompts.levels, VOCABULARY, 4096, 4096)


@dataclass
class Running:
    """A server that listens at `url`."""

    url: str
    port: int
    worker: FakeWorker
    turns: PlainTurns
    app: App
    crashes: list[str]


Start = Callable[..., Running]


@pytest.fixture
def start(prompts: Prompts, spelling: Spelling, grammars: Grammars) -> Iterator[Start]:
    """start(*scripts, options=..., context=...) -> Running; stopped when the test ends."""
    ends: list[Callable[[], None]] = []

    def begin(*scripts: Script, options: ServerOptions | None = None, context: int = 4096) -> Running:
        options = options or ServerOptions(port=0)
        worker, turns = (
            FakeWorker(prompts, scripts or [Script("</think>hello")], context),
            PlainTurns(prompts),
        )
        facts = Facts(options, MODEL_ID, prompts.levels, VOCABULARY, context, 1 << 20)
        intake = Intake(facts, spelling, grammars, turns)
        threads = ThreadPoolExecutor(2)
        crashes: list[str] = []

        def crash(detail: str) -> str:
            crashes.append(detail)
            return "crash.log"

        app = App(Counter(intake, worker, threads, options.limits, Record(), crash))
        sockets = listen(options)
        port = sockets[0].getsockname()[1]
        server = make_server(app, options)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)

        def end() -> None:
            for ticket in worker.tickets:
                ticket.cancel()
            server.should_exit = True
            thread.join(10)
            threads.shutdown()
            assert not thread.is_alive()

        ends.append(end)
        return Running(f"http://127.0.0.1:{port}", port, worker, turns, app, crashes)

    yield begin
    for end in ends:
        end()


@dataclass
class Replayed:
    """A server with the real engine thread; its model says what a script says."""

    url: str
    port: int
    worker: Worker


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[Callable[..., Replayed]]:
    """replay(turn, turn, ..., context=...) -> Replayed; each turn an object as in a replay file."""
    ends: list[Callable[[], object]] = []

    def begin(*turns: dict[str, Any], context: int | None = None) -> Replayed:
        file = tmp_path / "turns.jsonl"
        file.write_text("\n".join(json.dumps(turn) for turn in turns), encoding="utf-8")
        options = ServerOptions(port=0)
        facts = model_facts(CHECKPOINT, "dsv4-demo", options, context, None)
        worker = Worker(ReplayBackend(CHECKPOINT, read_script(file), facts.context)).start()
        threads = ThreadPoolExecutor(2)
        app = make_app(CHECKPOINT, facts, worker, threads, lambda detail: pytest.fail(detail))
        sockets = listen(options)
        server = make_server(app, options)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
        thread.start()
        while not (server.started and worker.state == "ready"):
            assert thread.is_alive() and worker.error is None
            threading.Event().wait(0.01)

        def end() -> None:
            worker.close(0)
            server.should_exit = True
            thread.join(10)
            threads.shutdown()

        ends.append(end)
        port = sockets[0].getsockname()[1]
        return Replayed(f"http://127.0.0.1:{port}", port, worker)

    yield begin
    for end in ends:
        end()
