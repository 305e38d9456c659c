"""All paged layers of one model: who they are, the threads they share, what they tell each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice

import mlx.core as mx

from dsv4_mlx.errors import UsageError
from dsv4_mlx.machine.limits import Pressure
from dsv4_mlx.model.tensors import ExpertProduct
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.paging.paged_experts import PagedExperts
from dsv4_mlx.paging.policy import DuelPolicy
from dsv4_mlx.paging.predictor import HashLayers, predictor_of
from dsv4_mlx.paging.pressure import PressureController
from dsv4_mlx.paging.reading import DiskReader, Files, ReaderPool
from dsv4_mlx.paging.schedule import PagedSchedule
from dsv4_mlx.paging.sizing import ExpertMemory
from dsv4_mlx.paging.stats import LayerStats, total
from dsv4_mlx.weights.records import RecordMap

THREADS = 2  # before a measurement says better
CANDIDATES = (1, 2, 4, 8)  # numbers of threads that are measured
RECORDS = 8  # read with each number
GAIN = 1.05  # more threads must be so much faster
CHUNK = 512  # rows of a chunk, at most
MOST_CHUNKS = 8
CHUNKS_MEMORY = 1 << 30  # bytes for the activations of chunks that go through a layer together
FREE_EVERY = 256  # steps; else MLX keeps freed buffers of ever more sizes, and memory was counted on
STRIDE = 97  # experts apart: records that are no neighbours on disk


class Pager:
    """Makes PagedExperts for a model that is being opened (`paged`), then looks after them."""

    def __init__(
        self,
        memory: ExpertMemory,
        threads: int | None,
        dtype: mx.Dtype,
        *,
        verify: bool = False,
        sense: Callable[[], Pressure] = lambda: Pressure.NORMAL,
    ) -> None:
        self.memory, self._dtype, self._verify = memory, dtype, verify
        self.files = Files()
        self.pool = ReaderPool(DiskReader(self.files, verify=verify), threads or THREADS)
        self.layers: dict[str, PagedExperts] = {}
        self.controller, self.sense, self.clock = PressureController(memory.slots), sense, time.monotonic
        self.resized: Callable[[], None] = lambda: None  # told once when banks have changed
        self._steps = 0
        self._seen: list[LayerStats] = []

    def paged(self, block: str, records: RecordMap, product: ExpertProduct) -> PagedExperts:
        """The source of a block's experts. Raises InputError, MachineError for a file that can't be read."""
        for path, size in zip(records.files, records.sizes, strict=True):
            self.files.open(path, size)
        if self._verify and not records.layout.digests:
            raise UsageError(
                "an official checkpoint has no digests to verify reads with",
                next="convert it, or leave --verify-reads out",
            )
        slots = self.memory.slots_of(block)
        layer = PagedExperts(records, slots, DuelPolicy(records.count), self.pool, self._dtype, product)
        self.layers[block] = layer
        return layer

    def attach(self, model: Transformer) -> None:
        """The model is open: its layers hear advice, and its steps choose their strategy."""
        layers = [self.layers[f"layers.{i}"] for i in range(len(model.blocks))]
        hashed = [i for i, block in enumerate(model.blocks) if block.ffn.hashed]
        known = HashLayers([model.blocks[i] for i in hashed], [layers[i] for i in hashed])
        for i, block in enumerate(model.blocks):
            if i and not block.ffn.hashed:
                layers[i - 1].predictor = predictor_of(block, layers[i])

        def before(tokens: Sequence[mx.array]) -> None:
            self._steps += 1
            if self._steps % FREE_EVERY == 0:
                mx.clear_cache()
            self.follow_pressure()
            known.advise(tokens)

        model.use(PagedSchedule(layers, before, self._chunks_per_step(model)))

    def _chunks_per_step(self, model: Transformer) -> int:
        """Chunks that go through a layer together: as many as their activations leave room for."""
        config = model.config
        values = config.hidden_size * (2 * config.streams + 2 * config.experts_per_token + 4)
        return max(1, min(MOST_CHUNKS, CHUNKS_MEMORY // (CHUNK * values * 4)))

    def follow_pressure(self) -> None:
        """Give memory back under pressure, take it again slowly. Between steps only: no work is queued."""
        now = self.clock()
        if not self.controller.due(now):
            return
        slots = self.controller.decide(self.sense(), now)
        changed = False
        for block, layer in self.layers.items():
            if layer.bank.slots != (wanted := min(slots, self.memory.slots_of(block))):
                layer.resize(wanted)
                mx.clear_cache()  # of the old bank, before the next layer's is made
                changed = True
        if changed:
            self.resized()

    def calibrate(self, clock: Callable[[], float] = time.perf_counter) -> int:
        """Use as many reader threads as read fastest here; the number.

        What is read stays in the slots, so the measurement is the beginning of filling them.
        """
        best, fastest = self.pool.threads, 0.0
        experts = iter(
            (layer, expert)
            for expert in range(self.memory.slots)
            for layer in self.layers.values()
            if expert < layer.bank.slots
        )
        for threads in CANDIDATES:
            batch = list(islice(experts, RECORDS))
            if len(batch) < RECORDS:
                break
            self.pool.resize(threads)
            started = clock()
            for layer, expert in batch:
                layer.advise([expert * STRIDE % layer.records.count])
            for layer, _ in batch:
                layer.settle()
            rate = 1 / max(clock() - started, 1e-9)
            if rate > fastest * GAIN:
                best, fastest = threads, rate
        self.pool.resize(best)
        return best

    def stats(self) -> list[LayerStats]:
        """Counts of every layer so far, in the order of the layers."""
        return [layer.stats.copy() for layer in self.layers.values()]

    def sums(self) -> dict[str, float]:
        """The same over all layers, by name. Any thread: numbers are whole, if not all of one moment."""
        return asdict(total(self.stats()))

    def recently(self) -> str:
        """What happened since the last call, for a status line; "" if no layer ran."""
        now = self.stats()
        new = [
            after - before for after, before in zip(now, self._seen or [LayerStats()] * len(now), strict=True)
        ]
        self._seen = now
        steps, all_layers = max((layer.runs for layer in new), default=0), total(new)
        if not steps:
            return ""
        read, stall = all_layers.bytes / steps / 1e6, all_layers.stall / steps * 1e3
        return f"experts {all_layers.hit_rate:.0%} in memory, {read:,.0f} MB and {stall:,.0f} ms a token"

    def close(self) -> None:
        self.pool.close()
