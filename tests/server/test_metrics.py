"""`GET /metrics`: Prometheus text, and what reading experts from disk did."""

from __future__ import annotations

import queue
import re
from pathlib import Path

from paging.paged_model import EACH, make
from server.client import call
from server.conftest import Start

from dsv4_mlx.engine.decode import Event, Finished
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.scheduler.backend import ModelBackend
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.server.metrics import Metrics

HI = {"messages": [{"role": "user", "content": "hi"}]}
LINE = re.compile(r"(\w+)(\{[^}]*\})? ([0-9.e+-]+)")


def values(text: str) -> dict[str, float]:
    """Every sample by name and labels; names are declared before they are used, and once."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP"):
            sample = LINE.fullmatch(line)
            assert sample, line
            name, labels, value = sample.groups()
            assert name in kinds or kinds[re.sub("_(bucket|sum|count)$", "", name)] == "histogram"
            assert (kinds.get(name) == "counter") == name.endswith("_total")
            found[name + (labels or "")] = float(value)
    return found


def test_requests_and_times(start: Start) -> None:
    port = start().port
    call(port, "POST", "/v1/chat/completions", HI)
    reply = call(port, "GET", "/metrics")
    found = values(reply.text)
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert found['dsv4_requests_total{api="/chat/completions",code="200"}'] == 1
    assert found["dsv4_ttft_seconds_count"] == 1 and min(found.values()) >= 0
    assert not any(name.startswith("dsv4_paging") for name in found), "nothing is paged here"


def test_paging(tmp_path: Path) -> None:
    model = make(tmp_path)
    options = EngineOptions(context=512, numerics="exact", expert_memory="8x")
    backend = ModelBackend(model.folder, options)
    worker = EngineThread(backend).start()
    try:
        before = finish(
            worker, GenerationRequest(tuple(model.tokens[:40]), SamplingOptions(temperature=0), 12)
        )
        after = finish(
            worker, GenerationRequest(tuple(model.tokens[40:60]), SamplingOptions(temperature=0), 5)
        )
        pager = backend.engine.pager
        assert pager is not None
        layers, records = list(pager.layers.values()), pager.stats()
        assert len(layers) > 1
    finally:
        worker.close(0)
    experts = {s: after[f'dsv4_paging_experts_total{{source="{s}"}}'] for s in ("memory", "early", "disk")}
    assert experts["memory"] == sum(layer.hits for layer in records) > 0
    assert experts["disk"] == sum(layer.misses for layer in records) > 0
    assert sum(experts.values()) >= EACH * after["dsv4_paging_layer_runs_total"] > 0
    read = experts["disk"] + after["dsv4_paging_advised_reads_total"]
    assert after["dsv4_paging_read_bytes_total"] == read * layers[0].records.read_bytes
    assert after["dsv4_paging_stall_seconds_total"] > 0
    assert all(after[name] >= before[name] for name in before if name.endswith("_total"))


def finish(worker: EngineThread, job: GenerationRequest) -> dict[str, float]:
    """Run a job; the metrics after it."""
    events: queue.Queue[Event] = queue.Queue()
    while worker.state == "loading":
        worker.probe(0.05)
    worker.submit(job, events.put)
    while not isinstance(event := events.get(timeout=60), Finished):
        pass
    assert event.error is None
    return values(Metrics().metrics(worker))
