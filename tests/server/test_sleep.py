"""A Mac that serves stays awake while it answers, and a minute longer."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from machine.test_awake import Spawner
from server.client import call, connected, read, request, until
from server.conftest import Serve
from server.fakes import CHECKPOINT

from dsv4_mlx.cli.main import run as run_command
from dsv4_mlx.machine import awake
from dsv4_mlx.machine.awake import Awake, Linger
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.server import lifecycle as run
from dsv4_mlx.server.app import App
from dsv4_mlx.server.options import ServerOptions

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "disabled"}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(replay: Callable[..., object], platform: str) -> tuple[int, Spawner, Clock, Callable[[], bool]]:
    spawn, clock = Spawner(), Clock()
    linger = Linger(Awake(spawn, platform), clock)
    running = replay({"content": "one two three", "tokens_per_second": 30}, linger=linger)
    return running.port, spawn, clock, lambda: running.worker.close(0)  # type: ignore[attr-defined]


def looked(port: int) -> None:
    """The engine thread has looked at its clock since."""
    for _ in range(2):
        assert call(port, "GET", "/health").status == 200


def test_one_helper_for_many_answers_that_ends_a_minute_after_the_last(replay: Callable[..., object]) -> None:
    port, spawn, clock, close = begun(replay, "darwin")
    looked(port)
    assert spawn.commands == []
    with connected(port) as first:
        first.sendall(request("POST", CHAT, {**HI, "stream": True}))
        assert b"200 OK" in first.recv(4096)
        assert until(lambda: len(spawn.commands) == 1)
        with ThreadPoolExecutor(6) as clients:  # more than run at once
            assert {
                reply.status for reply in clients.map(lambda _: call(port, "POST", CHAT, HI), range(6))
            } == {200}
        read(first)
    looked(port)
    clock.now += 59
    looked(port)
    assert call(port, "POST", CHAT, HI).status == 200  # an agent's next call
    looked(port)
    clock.now += 59
    looked(port)
    assert len(spawn.commands) == 1 and spawn.helpers[0].ended == 0
    clock.now += 1
    looked(port)
    assert spawn.helpers[0].ended == 1
    assert call(port, "POST", CHAT, HI).status == 200
    assert len(spawn.commands) == 2 and spawn.helpers[1].ended == 0
    close()
    assert spawn.helpers[1].ended == 1 and spawn.helpers[0].ended == 1


def test_elsewhere_there_is_none(replay: Callable[..., object]) -> None:
    port, spawn, _, close = begun(replay, "linux")
    assert call(port, "POST", CHAT, HI).status == 200
    close()
    assert spawn.commands == []


def test_the_command_does_so(serve_app: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = Spawner()

    def listened(
        app: App, options: ServerOptions, sockets: list[socket.socket], worker: EngineThread, end: object
    ) -> int:
        port = serve_app(app, ServerOptions(port=0)).port
        assert until(lambda: worker.state == "ready") and spawn.commands == []
        assert call(port, "POST", CHAT, HI).status == 200
        assert len(spawn.commands) == 1 and spawn.helpers[0].ended == 0
        worker.close(0)
        for one in sockets:
            one.close()
        return 0

    monkeypatch.setattr(awake, "Awake", lambda: Awake(spawn, "darwin"))
    monkeypatch.setattr(run, "serve", listened)
    monkeypatch.setattr("dsv4_mlx.cli.serve._log", lambda: logging.getLogger("silent"))
    (tmp_path / "turns.jsonl").write_text(json.dumps({"content": "here"}))
    assert (
        run_command(["serve", str(CHECKPOINT), "--port", "0", "--replay", str(tmp_path / "turns.jsonl")]) == 0
    )
    assert spawn.helpers[0].ended == 1
