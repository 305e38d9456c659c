"""A server on a real port, in a thread of this process, with a scripted worker behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
