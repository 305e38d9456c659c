"""Large bodies beside other requests: who else asks is answered at once, and memory comes back."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from server.client import Reply, call, until
from server.fakes import CHECKPOINT

CHAT = "/v1/chat/completions"
MB = 1 << 20
LINE = "def f(x):\n    return {\"a\": x[0], 'b': [1, 2, 3]}\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
Record = Callable[[str, object], None]


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    def memory(self, kind: str = "VmRSS") -> int:
        """Bytes; VmHWM: the most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(rf"^{kind}:\s+(\d+) kB", status, re.MULTILINE)
        assert found
        return int(found[1]) << 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    file = tmp_path / "turns.jsonl"
    file.write_text('{"content": "ok"}\n')
    command = [
        sys.executable,
        "-m",
        "dsv4_mlx",
        "serve",
        str(CHECKPOINT),
        "--port",
        "0",
        "--replay",
        str(file),
    ]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out, text=True)
    assert until(lambda: "ready after" in log.read_text(), 60)
    running = Server(process, int(re.findall(r"http://127\.0\.0\.1:(\d+)", log.read_text())[0]))
    for _ in range(3):
        assert ask(running, "hi").status == 200
    yield running
    process.kill()
    process.wait()


def ask(server: Server, content: str) -> Reply:
    return call(server.port, "POST", CHAT, {"messages": [{"role": "user", "content": content}]})


def code(size: int) -> bytes:
    """A body of so many bytes that is mostly text like a program's."""
    text = LINE * ((size - 60) // len(json.dumps(LINE)[1:-1]))
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


def lists(size: int) -> bytes:
    return b'{"messages": [' + b"[]," * ((size - 20) // 3) + b"1]}"


@dataclass
class Looks:
    """How long /health takes while something else is done, in seconds."""

    server: Server
    took: list[float] = field(default_factory=list)

    def __enter__(self) -> Looks:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.is_set():
            began = time.monotonic()
            assert call(self.server.port, "GET", "/health").status == 200
            self.took.append(time.monotonic() - began)
            time.sleep(0.01)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def two(server: Server, body: bytes, record: Record, name: str) -> None:
    before = server.memory()
    with Looks(server) as looks, ThreadPoolExecutor(2) as threads:
        codes = {one.json()["error"]["code"] for one in threads.map(lambda _: post(server, body), range(2))}
        assert ask(server, "hi").status == 200
    median, worst = statistics.median(looks.took), max(looks.took)
    grown = server.memory("VmHWM") - before
    record(name, f"health {median * 1e3:.0f} ms, at worst {worst * 1e3:.0f} ms; peak +{grown / MB:.0f} MB")
    assert codes == {"context_length_exceeded" if b"def f" in body else "request_too_large"}
    assert median <= 0.15 and worst <= 0.4
    assert grown <= 64 * MB + 8 * len(body)


def post(server: Server, body: bytes) -> Reply:
    return call(server.port, "POST", CHAT, raw=body)


@linux
@pytest.mark.parametrize("make", [code, lists])
def test_two_large_bodies_keep_nobody_waiting(
    server: Server, make: Callable[[int], bytes], record_property: Record
) -> None:
    two(server, make(6 * MB), record_property, "6 MB")


@linux
@pytest.mark.long
@pytest.mark.parametrize("make", [code, lists])
def test_two_bodies_of_32_mb(server: Server, make: Callable[[int], bytes], record_property: Record) -> None:
    two(server, make(32 * MB), record_property, "32 MB")


@linux
@pytest.mark.parametrize("counts", [(2, 8, 30), pytest.param((20, 180, 800), marks=pytest.mark.long)])
def test_memory_comes_back(server: Server, counts: tuple[int, int, int], record_property: Record) -> None:
    before = server.memory()
    for count, body in zip(counts, (code(32 * MB), code(MB), code(1000)), strict=True):
        with ThreadPoolExecutor(2) as threads:
            statuses = {
                one.status for one in threads.map(lambda _, body=body: post(server, body), range(count))
            }
        assert statuses <= {200, 400}
    end = time.monotonic() + 5
    while server.memory() - before > 64 * MB and time.monotonic() < end:
        time.sleep(0.1)
    grown = server.memory() - before
    record_property(
        "memory", f"{grown / MB:+.0f} MB after {counts}, peak {server.memory('VmHWM') / MB:.0f} MB"
    )
    assert grown <= 64 * MB


def test_a_larger_body_is_refused_by_its_head(server: Server) -> None:
    began = time.monotonic()
    reply = call(server.port, "POST", CHAT, raw=b"", headers={"Content-Length": str(32 * MB + 1)})
    assert reply.status == 413 and time.monotonic() - began < 1
