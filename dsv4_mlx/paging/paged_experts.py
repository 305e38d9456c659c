"""The experts of one layer, read into slots when they are needed: an ExpertSource.

One run: the routed ids come to the host, misses are asked for at once and in the order of the disk, what
needs no expert and what needs loaded ones is computed meanwhile, the rest when it is there (ExpertRun).

A chunk computed a group of experts at a time, to the same bits as all at once.

A row is one (token, expert) pair. What a row gives doesn't depend on the rows beside it, and a token's rows
are added in the order of its list when all are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.model.tensors import ExpertProduct, Routed
from dsv4_mlx.ops.reference.expert_ffn import add_in_order
from dsv4_mlx.paging.expert_run import ExpertRun
from dsv4_mlx.paging.policy import Policy
from dsv4_mlx.paging.reading import ReaderPool, read_failure
from dsv4_mlx.paging.slots import SlotBank, SlotTable
from dsv4_mlx.paging.stats import LayerStats
from dsv4_mlx.weights.records import RecordMap

Ids = npt.NDArray[np.int64]
Product = Callable[[Routed], mx.array]  # of rows whose ids are slots -> float32 [B, T, D]


class GroupedRows:
    """The rows of one chunk; `wanted` are its ids [B, T, A] on the host."""

    def __init__(self, chunk: Routed, wanted: Ids) -> None:
        self._shape, self._experts = wanted.shape, wanted.reshape(-1)
        self._x = chunk.x.reshape(-1, chunk.x.shape[-1])
        self._chunk = chunk.rows
        self._weights, self._shared = chunk.weights.reshape(-1), chunk.shared
        self._rows: list[Ids] = []
        self._outs: list[mx.array] = []

    def compute(self, group: Collection[int], slot_of: Ids, product: Product) -> mx.array | None:
        """The rows of these experts [n, D], not evaluated; None where the chunk has none."""
        rows = np.flatnonzero(np.isin(self._experts, list(group)))
        if not rows.size:
            return None
        one = (1, rows.size, 1)
        part = Routed(
            self._x[mx.array(rows // self._shape[-1])][None],
            mx.array(slot_of[self._experts[rows]].astype(np.uint32)).reshape(one),
            self._weights[mx.array(rows)].reshape(one),
            None,
            self._chunk,
        )
        out = product(part)[0]
        self._rows.append(rows)
        self._outs.append(out)
        return out

    def result(self) -> mx.array:
        """[B, T, D], when every expert has been in a group."""
        place = np.empty(self._experts.size, np.int64)
        place[np.concatenate(self._rows)] = np.arange(self._experts.size)
        rows = mx.concatenate(self._outs)[mx.array(place)]
        out = add_in_order(rows.reshape(*self._shape, -1))
        return out if self._shared is None else out + self._shared


FEW_ROWS = 16  # up to so many tokens a run's output is kept until its slots are needed, else computed at once
GROUP = 8  # experts computed together while others are still being read, in a run of many rows


class Predictor(Protocol):
    """Says early what another layer will need."""

    def predict(self, x: mx.array) -> mx.array | None:
        """From the input x [B, T, D] of this layer, expert ids to be computed beside this layer's."""

    def advise(self, predicted: Ids) -> None:
        """The ids, once this layer's own reads are on their way."""


@dataclass(frozen=True)
class OptimisticRun:
    """A run with whatever is loaded, which is right if `layer.holds` its ids [B, T, A]."""

    layer: PagedExperts
    ids: mx.array


class PagedExperts:
    """`records` in `slots` slots. While `optimistic` is a list, runs don't wait, and add to it instead."""

    def __init__(
        self,
        records: RecordMap,
        slots: int,
        policy: Policy,
        pool: ReaderPool,
        dtype: mx.Dtype,
        product: ExpertProduct,
    ) -> None:
        self.records, self.policy, self._pool = records, policy, pool
        self._product = product
        self.bank = SlotBank(records, slots, dtype)
        self.table = SlotTable(slots, records.count)
        self.stats = LayerStats()
        self.predictor: Predictor | None = None
        self.on_need: Callable[[set[int]], None] = lambda needed: None  # told what each run needs
        self.optimistic: list[OptimisticRun] | None = None
        self._on_device: mx.array | None = None  # uint32 [experts]: slots of loaded experts, 0 of others
        self._reads: dict[int, Future[None]] = {}  # by expert: asked for and not reported to the table
        self._advised: set[int] = set()
        self._queued: list[
            tuple[int, list[mx.array]]
        ] = []  # epochs that may not be finished, and their outputs

    def routed(self, chunks: Sequence[Routed]) -> list[mx.array]:
        """As model.tensors.ExpertSource; experts of several chunks are read once.

        Raises Dsv4Error when a record can't be read.
        """
        if self.optimistic is not None:
            return [self._run_optimistically(self.optimistic, chunk) for chunk in chunks]
        few = sum(chunk.ids[..., 0].size for chunk in chunks) <= FEW_ROWS
        predicted = self.predictor.predict(chunks[0].x) if few and self.predictor is not None else None
        mx.eval([chunk.ids for chunk in chunks], [] if predicted is None else predicted)
        wanted = [np.array(chunk.ids) for chunk in chunks]
        self._collect()
        self._finish()  # of the last run: done long ago, unless the caller has not evaluated it
        run = ExpertRun(self.table, self.policy, self.records.disk_order(_distinct(wanted)))
        self._count(run)
        self.on_need({*run.hits, *run.early, *run.misses})
        self._give_up_advice(run)
        self._begin(run)
        if predicted is not None and self.predictor is not None:
            self.predictor.advise(np.array(predicted))
        if not run.misses and not run.early:
            outs = self._together(chunks, wanted, run)
        else:
            outs = self._in_groups(chunks, wanted, run, GROUP if not few else run.size)
        if not few:
            self._finish()
        return outs

    def holds(self, experts: Collection[int]) -> bool:
        """Whether all these were loaded when an optimistic run began; nothing was read since."""
        return all(self.table.ready(expert) for expert in experts)

    def confirm(self, experts: Collection[int], out: mx.array | None = None) -> None:
        """An optimistic run was right: its experts count as used. `out` reads them, perhaps not computed."""
        self.on_need(set(experts))
        self.policy.step(experts)
        self.stats.runs += 1
        self.stats.hits += len(experts)
        if out is not None:
            self._finish()  # of the last such run: done, unless the caller has not evaluated it
            self._queued.append((self.table.use(experts), [out]))

    def advise(self, experts: Iterable[int]) -> None:
        """These experts may be needed soon: read those that are not here. Changes time, never a bit."""
        self._collect()
        experts = set(experts)
        absent = [e for e in experts if self.table.slot_of[e] < 0]
        if not absent:
            return
        self._finish()
        candidates = self.table.loaded(besides=experts)
        for expert in self.records.disk_order(absent):
            if self.table.free:
                self.table.claim(expert)
            elif candidates:
                victim = self.policy.victim(candidates)
                candidates.remove(victim)
                self.table.claim(expert, victim)
            else:
                return
            self._advised.add(expert)
            self.stats.advised += 1
            self._read(expert)

    def resize(self, slots: int) -> None:
        """Have `slots` slots from now on, at most as many as at first. What lay in others is read again when
        it is needed; nothing is copied."""
        self.settle()
        self.table.resize(slots, self.bank.resize(slots))
        self._on_device = None

    def settle(self) -> None:
        """Wait for all reads and all work; afterwards the bank may be resized."""
        if self._reads:
            wait(self._reads.values())
        self._collect()
        self._finish()

    def _run_optimistically(self, optimistic: list[OptimisticRun], chunk: Routed) -> mx.array:
        """No word from the host: what is not loaded is computed with another slot's bytes.

        Whoever collects these runs evaluates them before a slot is written again, and asks whether they were
        right.
        """
        if self._on_device is None:
            table = [slot if self.table.ready(e) else 0 for e, slot in enumerate(self.table.slot_of)]
            self._on_device = mx.array(np.array(table, np.uint32))
        optimistic.append(OptimisticRun(self, chunk.ids))
        slots = self._on_device[chunk.ids]
        return self._product(chunk._replace(ids=slots), *self.bank.banks())

    def _begin(self, run: ExpertRun) -> None:
        for expert in run.reads():
            self._read(expert)

    def _together(self, chunks: Sequence[Routed], wanted: Sequence[Ids], run: ExpertRun) -> list[mx.array]:
        """Every expert is loaded: one product a chunk, as with all experts in memory."""
        epoch, slot_of, banks = self.table.use(run.group()), self._slot_of(), self.bank.banks()
        outs = []
        for chunk, ids in zip(chunks, wanted, strict=True):
            slots = mx.array(slot_of[ids].astype(np.uint32))
            outs.append(self._product(chunk._replace(ids=slots), *banks))
        self._queued.append((epoch, outs))
        return outs

    def _in_groups(
        self,
        chunks: Sequence[Routed],
        wanted: Sequence[Ids],
        run: ExpertRun,
        worth: int,
    ) -> list[mx.array]:
        """Groups of experts as they come; `worth` of them are worth a product while others are read."""

        def rows(part: Routed) -> mx.array:
            return self._product(part, *self.bank.banks())

        parts = [GroupedRows(chunk, ids) for chunk, ids in zip(chunks, wanted, strict=True)]
        shared = [chunk.shared for chunk in chunks if chunk.shared is not None]
        mx.async_eval(shared)  # type: ignore[no-untyped-call]
        while not run.done:
            self._begin(run)
            group = run.group(worth)
            if not group:
                if run.blocked and self._queued and not run.reading:
                    self._finish()
                else:
                    self._wait(run, shared)
                continue
            epoch, slot_of = self.table.use(group), self._slot_of()
            outs = [part.compute(group, slot_of, rows) for part in parts]
            queued = [out for out in outs if out is not None]
            self._queued.append((epoch, queued))
            if run.blocked:
                self._finish()
            elif not run.done:
                mx.async_eval(queued)  # type: ignore[no-untyped-call]
        return [part.result() for part in parts]

    def _slot_of(self) -> Ids:
        return np.array(self.table.slot_of, np.int64)

    def _read(self, expert: int) -> None:
        slot = self.table.slot_of[expert]
        self._on_device = None
        self.stats.bytes += self.records.read_bytes
        self._reads[expert] = self._pool.submit(self.records, expert, self.bank.memory(slot))

    def _wait(self, run: ExpertRun, shared: list[mx.array]) -> None:
        """Until one more expert is here. Raises the error of a read that failed for this run.

        What can be computed is computed first; the time after that is lost.
        """
        waiting = [self._reads[e] for e in run.reading] or list(self._reads.values())
        if not waiting:
            raise RuntimeError("a run of a layer waits for nothing")
        if not any(future.done() for future in waiting):
            mx.eval(shared)
            self._finish()
            started = time.perf_counter()
            wait(waiting, return_when=FIRST_COMPLETED)
            self.stats.stall += time.perf_counter() - started
        for expert, error in self._collect_for(run):
            if expert in run.misses:
                raise error

    def _collect(self) -> list[tuple[int, Dsv4Error]]:
        """Report reads that ended to the table; those that failed."""
        failed = []
        for expert in [e for e, future in self._reads.items() if future.done()]:
            future = self._reads.pop(expert)
            self._advised.discard(expert)
            self._on_device = None
            error = None if future.cancelled() else read_failure(future)
            if error is None and not future.cancelled():
                self.table.filled(expert)
                continue
            self.table.failed(expert)
            if error is not None:
                failed.append((expert, error))
        return failed

    def _give_up_advice(self, run: ExpertRun) -> None:
        """Reads that were advised, have not begun and are not needed would only be in the way."""
        for expert in self._advised - set(run.early):
            self._reads[expert].cancel()
        self._collect_for(run)

    def _collect_for(self, run: ExpertRun) -> list[tuple[int, Dsv4Error]]:
        """As _collect. What failed as advice and is needed after all is read once more in its own name."""
        failed = self._collect()
        for expert, _ in failed:
            if expert in run.early:
                run.again(expert)
        return [one for one in failed if one[0] not in run.early]

    def _finish(self) -> None:
        """Compute what is queued, so that its slots may be written."""
        if self._queued:
            mx.eval([outs for _, outs in self._queued])
            self.table.finish(self._queued[-1][0])
            self._queued.clear()

    def _count(self, run: ExpertRun) -> None:
        self.stats.runs += 1
        self.stats.hits += len(run.hits)
        self.stats.early += len(run.early)
        self.stats.misses += len(run.misses)


def _distinct(wanted: Sequence[Ids]) -> list[int]:
    if len(wanted) == 1 and wanted[0].size <= FEW_ROWS:
        return list({int(e) for e in wanted[0].ravel()})
    return [int(e) for e in np.unique(np.concatenate([ids.ravel() for ids in wanted]))]
