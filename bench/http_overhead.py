"""What serving adds to a token, HTTP included: a streamed answer beside the bare decode loop.

    python -m bench.http_overhead [--tokens 2000] [--passes 5]

The demo's tokenizer and a scripted turn instead of a model, so that what is left is the serving: engine
thread, parser, event stream, uvicorn. The client is another process. CPU is that of the server's process, all
of its threads; wall is the client's, from the first text to the end. Bare and served passes alternate;
medians are reported. Beside mlx_lm.server: bench/against/http.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dsv4_mlx.engine.decode import Token
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.replay import ReplayBackend, ScriptedTurn
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.server.app import make_app, model_facts
from dsv4_mlx.server.lifecycle import listen, make_server
from dsv4_mlx.server.options import ServerOptions

DEMO = Path(__file__).parents[1] / "dsv4_mlx" / "demo"
CLIENT = """
import json, sys, time, urllib.request
body = json.dumps({"messages": [{"role": "user", "content": "go on"}], "stream": True, "temperature": 0,
                   "thinking": {"type": "disabled"}, "max_tokens": int(sys.argv[2])})
request = urllib.request.Request(sys.argv[1] + "/v1/chat/completions", body.encode(),
                                 {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as answer:
    begun, first, count = time.perf_counter(), 0.0, 0
    for line in answer:
        if b'"content"' in line:
            first, count = first or time.perf_counter(), count + 1
print(time.perf_counter() - first, count)
"""


def bare(turn: ScriptedTurn) -> tuple[float, float, int]:
    """Wall and CPU seconds of the loop alone, and its tokens."""
    backend = ReplayBackend(DEMO, [turn])
    backend.open(lambda done, total: None)
    session, count = backend.session(), 0
    wall, cpu = time.perf_counter(), time.process_time()
    asked = GenerationRequest((9,) * 8, SamplingOptions(temperature=0))
    for step in backend.run(SessionRows(session), asked):
        count += isinstance(step, Token)
    return time.perf_counter() - wall, time.process_time() - cpu, count


def stream(url: str, tokens: int) -> tuple[float, int]:
    """Wall seconds of a streamed answer as another process saw it, and the events with text in them."""
    command = [sys.executable, "-c", CLIENT, url, str(tokens)]
    wall, count = subprocess.run(command, capture_output=True, check=True).stdout.split()
    return float(wall), int(count)


def served(url: str, tokens: int) -> tuple[float, float]:
    """Wall seconds of the stream as the client saw it, CPU seconds of this process meanwhile."""
    cpu = time.process_time()
    return stream(url, tokens)[0], time.process_time() - cpu


def start(turn: ScriptedTurn) -> tuple[str, Callable[[], None]]:
    """A server that says `turn`; its address, and what ends it."""
    options = ServerOptions(port=0)
    facts = model_facts(DEMO, "dsv4-demo", options, None, None)
    worker = EngineThread(ReplayBackend(DEMO, [turn], facts.context)).start()
    threads = ThreadPoolExecutor(2)
    sockets = listen(options)
    server = make_server(make_app(DEMO, facts, worker, threads, str), options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
    thread.start()
    while worker.state == "loading" or not server.started:
        time.sleep(0.01)

    def end() -> None:
        server.should_exit = True
        thread.join()
        worker.close(0)
        threads.shutdown()

    return f"http://127.0.0.1:{sockets[0].getsockname()[1]}", end


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    turn = ScriptedTurn("the script", content=" and" * options.tokens)
    url, end = start(turn)
    alone, through, count = [], [], 0
    for _ in range(options.passes):
        wall, cpu, count = bare(turn)
        alone.append((wall / count * 1e6, cpu / count * 1e6))
        wall, cpu = served(url, options.tokens)
        through.append((wall / count * 1e6, cpu / count * 1e6))
    end()
    medians = [[statistics.median(one[i] for one in found) for i in (0, 1)] for found in (alone, through)]
    names = ("bare", "served")
    found = {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in zip(names, medians, strict=True)}
    added = {key: found["served"][key] - found["bare"][key] for key in ("wall", "cpu")}
    print(json.dumps({"tokens": count, "microseconds_per_token": {**found, "added": added}}, indent=1))


if __name__ == "__main__":
    main()
