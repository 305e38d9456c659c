"""What the engine thread adds to a token: requests through the engine thread beside a bare decode loop.

    python -m bench.serving_overhead [--tokens 3000] [--passes 7]

The model is left out: a session that answers at once, so that what remains is the loop itself. Bare and
served passes alternate; of each the median is reported. CPU is the engine thread's own time, wall includes
handing each event to another thread, which takes them out as a server would.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np

from dsv4_mlx.engine.chooser import GenerationLimits
from dsv4_mlx.engine.decode import Event, Finished, PrefillProgress
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import run
from dsv4_mlx.engine.session import Logits, SessionRows
from dsv4_mlx.errors import Progress
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import Run, wanted
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.session_policy import SessionLimits
from dsv4_mlx.tokenizer.template import Markers, Prompts

VOCABULARY = 129_280
MARKERS = Markers(end=1, user=4, assistant=5, think=6, end_think=7)
GREEDY = SamplingOptions(temperature=0)


class Still:
    """A session without a model: the likeliest token is always 9."""

    growth = 2048

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.markers, self.vocabulary = MARKERS, VOCABULARY
        self.context = self.capacity = 1 << 20
        self.logits: Logits = np.zeros(VOCABULARY, np.float32)
        self.logits[9] = 1

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        chunks_per_step: Callable[[], int | None] = lambda: None,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> Iterator[PrefillProgress]:
        self.tokens = list(tokens)
        yield PrefillProgress(len(tokens), len(tokens), 0)

    def advance(self, token: int) -> Logits:
        self.tokens.append(token)
        return self.logits

    def cached_prefix(self, tokens: Sequence[int]) -> int:
        return 0

    def fork_at(self, tokens: Sequence[int]) -> Self:
        raise NotImplementedError


class Timed:
    """A backend of still sessions that notes the CPU time its thread took between first and last token."""

    context = 1 << 20
    vocabulary = VOCABULARY

    def __init__(self) -> None:
        self.cpu = 0.0

    @property
    def prompts(self) -> Prompts:
        raise NotImplementedError("tokens only")

    def open(self, progress: Progress) -> None:
        pass

    def limits(self, count: int) -> SessionLimits:
        return SessionLimits(1 << 40, count, self.context, lambda tokens: tokens + 1)

    def session(self) -> Still:
        return Still()

    def run(self, rows: SessionRows, job: GenerationRequest) -> Run:
        begun = time.thread_time()
        ended = yield from run(rows, job.prompt, job.sampling, wanted(job))
        self.cpu += time.thread_time() - begun
        return ended

    def memory(self) -> dict[str, int]:
        return {}

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass


def bare(tokens: int) -> tuple[float, float]:
    """Wall and CPU seconds of the loop alone."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in run(SessionRows(Still()), [9] * 8, GREEDY, GenerationLimits(tokens)):
        pass
    return time.perf_counter() - wall, time.thread_time() - cpu


def served(worker: EngineThread, backend: Timed, tokens: int) -> tuple[float, float]:
    """The same through the worker, with a thread that takes the events."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def take() -> None:
        while not isinstance(events.get(), Finished):
            pass

    taker = threading.Thread(target=take)
    backend.cpu = 0.0
    wall = time.perf_counter()
    taker.start()
    worker.submit(GenerationRequest((9,) * 8, GREEDY, tokens), events.put)
    taker.join()
    return time.perf_counter() - wall, backend.cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--passes", type=int, default=7)
    options = parser.parse_args()
    backend = Timed()
    worker = EngineThread(backend, SchedulerOptions()).start()
    while worker.state == "loading":
        time.sleep(0.01)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "bare": lambda: bare(options.tokens),
        "served": lambda: served(worker, backend, options.tokens),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.passes):
        for name, way in ways.items():
            found[name].append(way())
    worker.close(1)
    medians = {
        name: [statistics.median(one[i] for one in times) * 1e6 / options.tokens for i in (0, 1)]
        for name, times in found.items()
    }
    for name, (wall, cpu) in medians.items():
        print(f"{name:7} {wall:8.1f} us wall, {cpu:8.1f} us CPU per token")
    wall, cpu = (medians["served"][i] - medians["bare"][i] for i in (0, 1))
    print(f"added   {wall:8.1f} us wall, {cpu:8.1f} us CPU per token")


if __name__ == "__main__":
    main()
