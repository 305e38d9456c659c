"""Time: keep-alives, clients that leave, clients that take nothing, many at once."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from server.client import call, connected, dechunked, parsed, read, request, until
from server.conftest import Start
from server.fakes import Script
from server.sse import events, read_chat

from dsv4_mlx.server.options import ServerLimits, ServerOptions

HI = [{"role": "user", "content": "hi"}]
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "stream": True},
    "/v1/completions": {"prompt": "hi", "stream": True},
    "/v1/responses": {"input": "hi", "stream": True},
    "/v1/messages": {"messages": HI, "max_tokens": 50, "stream": True},
}
QUICK = ServerOptions(port=0, limits=ServerLimits(keep_alive=0.1, silent_time=0.2, drain_time=0.5))


@pytest.mark.parametrize("path", STREAMS)
def test_keep_alives_before_the_first_token(start: Start, path: str) -> None:
    running = start(Script("</think>hello", prefill=0.6), options=QUICK)
    text = call(running.port, "POST", path, STREAMS[path]).text
    if path == "/v1/messages":
        names = [name for name, _ in events(text)]
        assert names[0] == "message_start" and names[1:4] == ["ping"] * 3
    elif path == "/v1/responses":
        found = events(text)
        assert [name for name, _ in found][:5] == ["response.created", *["response.in_progress"] * 4]
        assert [event["sequence_number"] for _, event in found] == list(range(len(found)))
        assert len({event["response"]["id"] for _, event in found if "response" in event}) == 1
    else:
        assert text.startswith(": keep-alive\n\n: prefill 0/") and text.count(": prefill") >= 3


def until_event(connection: socket.socket) -> bytes:
    """What comes until a first event or comment is whole."""
    got = b""
    while b"\n\n" not in got.partition(b"\r\n\r\n")[2]:
        got += connection.recv(4096)
    return got


def test_first_sign_of_life_while_queued(start: Start) -> None:
    running = start(Script("</think>hello", queued=1.6))
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(running.port)) for _ in STREAMS]
        began = time.monotonic()
        for connection, (path, body) in zip(connections, STREAMS.items(), strict=True):
            connection.sendall(request("POST", path, body))
        begun = [until_event(connection) for connection in connections]
        assert time.monotonic() - began < 1.5
        for got, connection in zip(begun, connections, strict=True):
            rest = got + read(connection)
            assert b"hello" in rest or b'"ell"' in rest


def test_keep_alives_go_on_between_tokens(start: Start) -> None:
    running = start(Script("</think>one two", pause=0.3), options=QUICK)
    text = call(running.port, "POST", "/v1/chat/completions", STREAMS["/v1/chat/completions"]).text
    assert text.count("\n\n: ") >= 2 and read_chat(text).content == "one two"


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        Script("</think>x", queued=30),
        Script("</think>x", prefill=30),
        Script("</think>" + "x " * 2000, pause=0.01),
    ],
    ids=["queued", "prefill", "decode"],
)
def test_a_client_that_leaves_ends_its_turn(start: Start, path: str, stream: bool, script: Script) -> None:
    running = start(script)
    with connected(running.port) as connection:
        connection.sendall(request("POST", path, {**STREAMS[path], "stream": stream, "max_tokens": 10_000}))
        assert until(lambda: running.worker.tickets)
        time.sleep(0.05)
        assert not running.worker.tickets[0].cancelled.is_set()
    assert running.worker.tickets[0].cancelled.wait(2)
    assert until(lambda: running.app.server.record.cancelled == 1)


def test_a_client_that_takes_nothing_is_dropped(start: Start) -> None:
    """And the others don't notice."""
    long = Script("</think>" + "word " * 60_000)
    running = start(long, Script("</think>fine"), options=QUICK, context=10**6)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", running.port))
    with slow:
        slow.sendall(request("POST", "/v1/chat/completions", STREAMS["/v1/chat/completions"]))
        assert until(lambda: running.worker.tickets)
        began = time.monotonic()
        assert call(running.port, "POST", "/v1/chat/completions", {"messages": HI}).status == 200
        assert time.monotonic() - began < 2
        assert running.worker.tickets[0].cancelled.wait(20)
    assert until(lambda: running.app.server.record.cancelled == 1)


def test_a_plain_answer_that_takes_long_begins_with_blank_lines(start: Start) -> None:
    running = start(Script("</think>hello", prefill=0.6), options=QUICK)
    with connected(running.port) as connection:
        connection.sendall(request("POST", "/v1/chat/completions", {"messages": HI}))
        raw = read(connection)
    body = dechunked(raw.partition(b"\r\n\r\n")[2])
    assert body.startswith(b"\n\n")
    assert parsed(raw).json()["choices"][0]["message"]["content"] == "hello"


def test_many_streams_each_get_their_own(start: Start) -> None:
    count = 24
    scripts = [Script(f"</think>stream {i} " + f"n{i} " * 20, pause=0.002) for i in range(count)]
    running = start(*scripts)
    lock, said = threading.Lock(), dict[int, str]()

    def one(i: int) -> None:
        paths = ["/v1/chat/completions"]
        with lock:  # the n-th job gets the n-th script
            connection = socket.create_connection(("127.0.0.1", running.port), 20)
            before = len(running.worker.jobs)
            connection.sendall(request("POST", paths[0], STREAMS[paths[0]]))
            assert until(lambda: len(running.worker.jobs) > before)
        with connection:
            said[before] = read_chat(parsed(read(connection)).text).content

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == {i: script.text.removeprefix("</think>") for i, script in enumerate(scripts)}


def test_a_connection_is_used_again(start: Start) -> None:
    port = start().port
    with connected(port) as connection:
        for _ in range(3):
            body = request("POST", "/v1/chat/completions", {"messages": HI}, {"Connection": "keep-alive"})
            connection.sendall(body)
            raw = b""
            while b"\r\n\r\n" not in raw or not raw.endswith(b"}"):
                raw += connection.recv(65536)
            assert parsed(raw).status == 200
