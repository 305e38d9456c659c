"""A server on a real port, in a thread of this process, with a scripted worker behind it.

Listening servers are used again from test to test, each with the next test's application: ending one takes
longer than most tests.
"""

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
from server.client import until
from server.fakes import CHECKPOINT, VOCABULARY, FakeWorker, PlainTurns, Script
from starlette.types import Receive, Scope, Send

from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.machine.awake import Linger
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.replay import ReplayBackend, read_script
from dsv4_mlx.server.app import App, make_app, model_facts
from dsv4_mlx.server.lifecycle import listen, make_server
from dsv4_mlx.server.metrics import Metrics
from dsv4_mlx.server.options import MODEL_ID, ServerLimits, ServerOptions
from dsv4_mlx.server.protocols.request import ServerInfo
from dsv4_mlx.server.streaming import ServerContext
from dsv4_mlx.server.translate import Translator
from dsv4_mlx.tokenizer.template import Prompts, Spelling


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
def facts(prompts: Prompts) -> ServerInfo:
    return ServerInfo(ServerOptions(), MODEL_ID, prompts.levels, VOCABULARY, 4096, 4096)


class Listener:
    """uvicorn in a thread; `app` is whose turn it is."""

    def __init__(self, options: ServerOptions) -> None:
        self.app: App | None = None
        self.busy = 0  # requests under way
        sockets = listen(options)
        self.port = sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(self, options)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets)))
        self._thread.start()
        assert until(lambda: self._server.started)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        self.busy += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.busy -= 1

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


Serve = Callable[[App, ServerOptions], Listener]


@pytest.fixture(scope="session")
def listeners() -> Iterator[dict[ServerLimits, list[Listener]]]:
    """Those that listen and have nothing to do, by what uvicorn was told."""
    idle: dict[ServerLimits, list[Listener]] = {}
    yield idle
    for listener in (one for some in idle.values() for one in some):
        listener.close()


@pytest.fixture
def serve_app(listeners: dict[ServerLimits, list[Listener]]) -> Iterator[Serve]:
    """serve_app(app, options) -> what listens for it until the test ends."""
    used: list[tuple[ServerLimits, Listener]] = []

    def begin(app: App, options: ServerOptions) -> Listener:
        assert (options.host, options.port) == ("127.0.0.1", 0)
        idle = listeners.setdefault(options.limits, [])
        listener = idle.pop() if idle else Listener(options)
        listener.app = app
        used.append((options.limits, listener))
        return listener

    yield begin
    for limits, listener in used:
        assert until(lambda one=listener: one.busy == 0), "a request that never ends"
        listeners[limits].append(listener)


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
def start(prompts: Prompts, spelling: Spelling, grammars: Grammars, serve_app: Serve) -> Iterator[Start]:
    """start(*scripts, options=..., context=...) -> Running; stopped when the test ends."""
    ends: list[Callable[[], None]] = []

    def begin(*scripts: Script, options: ServerOptions | None = None, context: int = 4096) -> Running:
        options = options or ServerOptions(port=0)
        worker, turns = (
            FakeWorker(prompts, scripts or [Script("</think>hello")], context),
            PlainTurns(prompts),
        )
        facts = ServerInfo(options, MODEL_ID, prompts.levels, VOCABULARY, context, 1 << 20)
        translator = Translator(facts, spelling, grammars, turns)
        threads = ThreadPoolExecutor(2)
        crashes: list[str] = []

        def crash(detail: str) -> str:
            crashes.append(detail)
            return "crash.log"

        app = App(ServerContext(translator, worker, threads, options.limits, Metrics(), crash))
        listener = serve_app(app, options)

        def end() -> None:
            for ticket in worker.tickets:
                ticket.cancel()
            assert until(lambda: listener.busy == 0)
            threads.shutdown()

        ends.append(end)
        return Running(listener.url, listener.port, worker, turns, app, crashes)

    yield begin
    for end in ends:
        end()


@dataclass
class Replayed:
    """A server with the real engine thread; its model says what a script says."""

    url: str
    port: int
    worker: EngineThread


@pytest.fixture
def replay(tmp_path: Path, serve_app: Serve) -> Iterator[Callable[..., Replayed]]:
    """replay(turn, ..., context=..., linger=...) -> Replayed; each turn an object as in a replay file."""
    ends: list[Callable[[], object]] = []

    def begin(*turns: dict[str, Any], context: int | None = None, linger: Linger | None = None) -> Replayed:
        file = tmp_path / "turns.jsonl"
        file.write_text("\n".join(json.dumps(turn) for turn in turns), encoding="utf-8")
        options = ServerOptions(port=0)
        facts = model_facts(CHECKPOINT, "dsv4-demo", options, context, None)
        backend = ReplayBackend(CHECKPOINT, read_script(file), facts.context)
        worker = EngineThread(backend, linger=linger).start()
        threads = ThreadPoolExecutor(2)
        app = make_app(CHECKPOINT, facts, worker, threads, lambda detail: pytest.fail(detail))
        listener = serve_app(app, options)
        assert until(lambda: worker.state == "ready") and worker.error is None

        def end() -> None:
            worker.close(0)
            assert until(lambda: listener.busy == 0)
            threads.shutdown()

        ends.append(end)
        return Replayed(listener.url, listener.port, worker)

    yield begin
    for end in ends:
        end()
