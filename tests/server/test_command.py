"""The command `serve` as a process: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from server.client import call, connected, parsed, read, request, until
from server.fakes import CHECKPOINT
from server.sse import events

from dsv4_mlx.cli.options import LONGEST_KEY, api_key_from
from dsv4_mlx.errors import UsageError
from dsv4_mlx.machine.limits import allow

HI = [{"role": "user", "content": "hi"}]
COMMAND = [sys.executable, "-m", "dsv4_mlx", "serve", str(CHECKPOINT)]
Serve = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    running: list[subprocess.Popen[str]] = []

    def begin(
        *turns: dict[str, object], more: tuple[str, ...] = (), key: str = "", first: str = ""
    ) -> tuple[subprocess.Popen[str], int]:
        file = tmp_path / "turns.jsonl"
        file.write_text("\n".join(json.dumps(turn) for turn in turns))
        command = [*COMMAND, "--port", "0", *(["--replay", str(file)] if turns else []), *more]
        process = subprocess.Popen(
            ["sh", "-c", f'{first}\nexec "$@"', "sh", *command],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DSV4_API_KEY": key},
        )
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line + process.stderr.read()
        return process, int(found[1])

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def ready(port: int) -> None:
    end = time.monotonic() + 60
    while call(port, "GET", "/health").status != 200:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_answers_end(serve: Serve, number: signal.Signals, code: int) -> None:
    process, port = serve({"content": "one two three four five", "tokens_per_second": 8})
    ready(port)
    with connected(port) as connection:
        connection.sendall(request("POST", "/v1/chat/completions", {"messages": HI, "stream": True}))
        while b"one" not in connection.recv(4096):
            pass
        process.send_signal(number)
        rest = read(connection)
    assert b"[DONE]" in rest and b"five" in rest.replace(b'"', b"") or b"stop" in rest
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "") and "Traceback" not in err


def test_a_second_signal_ends_at_once(serve: Serve) -> None:
    process, port = serve({"content": "word " * 500, "tokens_per_second": 2})
    ready(port)
    with connected(port) as connection:
        connection.sendall(request("POST", "/v1/chat/completions", {"messages": HI, "stream": True}))
        connection.recv(4096)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        with connected(port, 2) as late:
            late.sendall(request("POST", "/v1/chat/completions", {"messages": HI}))
            assert parsed(read(late)).status == 503
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


def test_the_model_itself(serve: Serve) -> None:
    """The shipped model, its own weights, all four protocols."""
    process, port = serve(more=("--context", "2048"))
    ready(port)
    asked = [{"role": "user", "content": "What is the sliding window?"}]
    greedy = {"temperature": 0, "max_tokens": 60}
    chat = call(port, "POST", "/v1/chat/completions", {"messages": asked, **greedy}).json()
    usage = chat["usage"]
    assert usage["completion_tokens"] <= 60 and usage["prompt_tokens"] > 5
    again = call(port, "POST", "/v1/chat/completions", {"messages": asked, **greedy}).json()
    assert again["choices"][0]["message"] == chat["choices"][0]["message"]
    message = call(port, "POST", "/v1/messages", {"messages": asked, **greedy}).json()
    thought = next((b["thinking"] for b in message["content"] if b["type"] == "thinking"), "")
    assert thought == chat["choices"][0]["message"].get("reasoning_content", "")
    response = call(
        port,
        "POST",
        "/v1/responses",
        {"input": asked[0]["content"], "temperature": 0, "max_output_tokens": 60},
    )
    assert response.json()["usage"]["output_tokens"] == usage["completion_tokens"]
    text = call(
        port, "POST", "/v1/completions", {"prompt": "The sliding window", "logprobs": 3, **greedy}
    ).json()
    logprobs = text["choices"][0]["logprobs"]["token_logprobs"]
    assert all(value <= 0 for value in logprobs) and len(logprobs) > 3
    schema = strict_object("n", [1, 2, 3])
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": asked, "response_format": form, "thinking": {"type": "disabled"}, "seed": 7}
    said = call(port, "POST", "/v1/chat/completions", body).json()["choices"][0]
    assert json.loads(said["message"]["content"])["n"] in (1, 2, 3)
    function = {"name": "read", "strict": True, "parameters": strict_object("n", ["a", "b"])}
    tool = {"type": "function", "function": function}
    body = {"messages": asked, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    for thinking in ("disabled", "enabled"):
        more = {"thinking": {"type": thinking, "budget_tokens": 20}, "seed": 3, "max_tokens": 300}
        choice = call(port, "POST", "/v1/chat/completions", {**body, **more}).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls", choice
        (made,) = choice["message"]["tool_calls"]
        assert json.loads(made["function"]["arguments"])["n"] in ("a", "b")
    stream = call(port, "POST", "/v1/chat/completions", {"messages": asked, "stream": True, **greedy})
    assert events(stream.text)[-1][1] == "[DONE]"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def strict_object(name: str, values: list[object]) -> dict[str, object]:
    """The schema of an object with one property, one of `values`."""
    properties = {name: {"enum": values}}
    return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment)


def test_a_key_that_the_list_of_processes_does_not_show(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("key-of-the-file\n")
    started = {
        "key-of-the-file": serve({"content": "x"}, more=("--api-key-file", str(file)), key="not-this"),
        "key-of-the-variable": serve({"content": "x"}, key="key-of-the-variable"),
    }
    for key, (process, port) in started.items():
        shown = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(process.pid)], capture_output=True, text=True
        )
        assert "serve" in shown.stdout and "key-of" not in shown.stdout
        for given, status in ((key, 200), ("not-this", 401), ("", 401)):
            reply = call(port, "GET", "/v1/models", headers={"Authorization": f"Bearer {given}"})
            assert reply.status == status


def answered(port: int) -> tuple[int, str]:
    """Status and text of one chat turn, or its error."""
    reply = call(port, "POST", "/v1/chat/completions", {"messages": HI, "thinking": {"type": "disabled"}})
    said = reply.json()
    return reply.status, said["error"]["message"] if "error" in said else said["choices"][0]["message"][
        "content"
    ]


def test_descriptors_are_raised_for_300_idle_connections(serve: Serve) -> None:
    allow(1024)  # this process holds the other ends
    process, port = serve({"content": "here"}, first="ulimit -S -n 256")
    ready(port)
    with ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(connected(port))
        assert answered(port) == (200, "here")
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=30)[1]
    assert "Traceback" not in err and "ulimit" not in err


def test_with_too_few_descriptors_a_client_is_told_so(serve: Serve) -> None:
    """A hard limit of 256: nobody waits, what was open goes on, and what ends makes room."""
    allow(1024)
    process, port = serve({"content": "here"}, first="ulimit -n 256")
    assert process.stderr is not None and "raise ulimit -n" in process.stderr.readline()
    ready(port)
    with connected(port) as early, ExitStack() as idle:
        early.sendall(request("GET", "/health", headers={"Connection": "keep-alive"}))
        assert b"200 OK" in early.recv(4096)
        for _ in range(300):
            idle.enter_context(connected(port))
        for _ in range(20):  # more than are kept open to be told
            status, said = answered(port)
            assert status == 503 and said.endswith("connections are open")
        early.sendall(request("GET", "/v1/models"))
        assert parsed(read(early)).status == 200
    assert until(lambda: answered(port) == (200, "here"))
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=30)[1]
    assert "Traceback" not in err


def test_descriptors_that_something_else_uses_up(serve: Serve) -> None:
    """So few that the limit on connections does not help: clients wait, and are served once others end."""
    allow(1024)
    process, port = serve({"content": "here"}, first="ulimit -n 256")
    ready(port)
    if sys.platform != "linux":
        pytest.skip("only Linux changes limits of a running process")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (24, 24))
    with ExitStack() as idle:
        for _ in range(30):
            idle.enter_context(connected(port))
        before = cpu_seconds(process.pid)
        time.sleep(1.0)
        assert cpu_seconds(process.pid) - before < 0.5, "a busy loop"
    assert until(lambda: answered(port) == (200, "here"))
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=30)[1]
    assert "Traceback" not in err
    said = err.count("new connections wait until others end: Too many open files")
    assert 1 <= said <= 3, "once for each time that there was room in between"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_keys_that_no_client_could_send(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for content in (
        b"",
        b"\n",
        b"two words",
        b"a\nb",
        "schlüssel".encode(),
        b"\x00",
        b"x" * (LONGEST_KEY + 9),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="can't be sent"):
            api_key_from(None, file)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="can't read"):
            api_key_from("other", missing)
    with pytest.raises(UsageError, match="can't be sent"):
        api_key_from("schlüssel", None)
    file.write_bytes(b"windows\r\n")
    assert api_key_from("other", file) == "windows" and api_key_from("", None) is None


def test_what_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = run("--port", str(taken.getsockname()[1]))
    assert (busy.returncode, busy.stdout) == (3, "") and busy.stderr.startswith("error: can't listen")
    everywhere = run("--host", "0.0.0.0")
    assert everywhere.returncode == 2 and "--api-key" in everywhere.stderr
    nowhere = run("--host", "192.0.2.1")
    assert nowhere.returncode in (2, 3) and nowhere.stderr.startswith("error: ")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"content": "x"}\n{"contents": "y"}\n')
    replay = run("--replay", str(bad))
    assert replay.returncode == 2 and "line 2" in replay.stderr
    assert run("--context", "0").returncode == 2
