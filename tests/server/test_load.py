"""64 streams at once beside clients that leave, dawdle and lie: the server as a process of its own."""

from __future__ import annotations

import asyncio
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server.client import call, until
from server.crowd import CHAT, HI, Crowd, script
from server.fakes import CHECKPOINT

ACTIVE, WAITING, CLIENTS = 48, 16, 72  # 64 streams, and a few that find no place
BODY = 32 << 20  # bytes of a body at most; in pieces, joined, and the rest of the last read
GROWTH = 32 << 20  # bytes that the server may have more at the end than after the warm-up
Record = Callable[[str, object], None]


class Watch:
    """Memory and queue of the server, looked at every half second."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.memory: list[tuple[float, int]] = []
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.slowest = 0.0

    async def run(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.to_thread(self._look)
            await asyncio.sleep(0.5)

    def _look(self) -> None:
        began = time.monotonic()
        text = call(self.port, "GET", "/metrics").text
        assert call(self.port, "GET", "/health").status == 200
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.running.append(gauge(text, "running"))
        self.waiting.append(gauge(text, "waiting"))
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True)
        self.memory.append((time.monotonic(), int(shown.stdout) << 10))

    def usual(self, begin: float, end: float) -> int:
        """Bytes between two moments: the median, for a body of 66 MB shows while it is read."""
        return statistics.median_high(size for when, size in self.memory if begin <= when <= end)


def gauge(text: str, name: str) -> int:
    found = re.search(rf"^dsv4_num_requests_{name} (\d+)$", text, re.MULTILINE)
    assert found
    return int(found[1])


def test_sixty_four_streams(tmp_path: Path, record_property: Record) -> None:
    load(tmp_path, record_property, seconds=8, warm=4)


@pytest.mark.long
def test_sixty_four_streams_for_five_minutes(tmp_path: Path, record_property: Record) -> None:
    load(tmp_path, record_property, seconds=300, warm=60)


def load(tmp_path: Path, record: Record, seconds: float, warm: float) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text(script(int(1000 + 40 * seconds)), encoding="utf-8")
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
    command += ["--max-active", str(ACTIVE), "--max-queue", str(WAITING)]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, stderr=err, text=True, cwd=tmp_path)
    try:
        assert until(lambda: "ready after" in (tmp_path / "err").read_text(), 60)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", (tmp_path / "err").read_text())
        assert found
        port = int(found[1])
        begun = time.monotonic()
        crowd, watch = Crowd(port, CLIENTS, begun + seconds), Watch(process, port)
        asyncio.run(together(crowd, watch))
        assert until(lambda: gauge(call(port, "GET", "/metrics").text, "running") == 0)
        watch._look()
        judge(crowd, watch, begun, warm, seconds, record)
        after = call(port, "POST", CHAT, {"messages": HI, "thinking": {"type": "disabled"}}).json()
        assert after["choices"][0]["message"]["content"].startswith("turn ")
        codes = set(re.findall(r'code="(\d+)"', call(port, "GET", "/metrics").text))
        assert not codes & {"500", "501", "502", "503", "504", "529"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "err").read_text()


async def together(crowd: Crowd, watch: Watch) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.run(crowd.end))
        group.create_task(crowd.run())


def judge(crowd: Crowd, watch: Watch, begun: float, warm: float, seconds: float, record: Record) -> None:
    seen = crowd.seen
    gaps = sorted(seen.gaps)
    p99 = gaps[int(len(gaps) * 0.99)] if gaps else 0.0
    early = watch.usual(begun + warm / 2, begun + warm)
    late = watch.usual(begun + seconds - warm / 2, begun + seconds)
    record("answers", dict(seen.counts))
    record("streams at once", max(a + b for a, b in zip(watch.running, watch.waiting, strict=True)))
    record("silence p99, largest (s)", (round(p99, 2), round(max(gaps, default=0), 2)))
    most = max(size for _, size in watch.memory)
    record("MB after warm-up, at the end, at most", (early >> 20, late >> 20, most >> 20))
    record("slowest health and metrics (s)", round(watch.slowest, 2))
    assert not seen.wrong, seen.wrong[:5]
    assert all(seen.counts[kind] for kind in ("stream", "plain", "slow", "left", "refused", "hostile"))
    assert max(seen.turns.values()) == 1, "a turn was told to two clients"
    assert max(watch.running) == ACTIVE and max(watch.waiting) == WAITING
    assert len(gaps) > 10 and p99 < 6, (len(gaps), p99)
    assert late - early < GROWTH and most - early < GROWTH + 3 * BODY, (early, late, most)
