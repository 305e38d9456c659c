"""The experts of one layer, read into slots when they are needed: an ExpertSource.

One run: the routed ids come to the host, misses are asked for at once and in the order of the disk, what
needs no expert and what needs loaded ones is computed meanwhile, the rest when it is there. Each product of a
token with an expert is the same whatever group it is computed in, and a token's products are added in the
order of its list, so neither slots nor time change a bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.model.tensors import ExpertProduct
from dsv4_mlx.paging.bank import SlotBank
from dsv4_mlx.paging.policy import Policy
from dsv4_mlx.paging.reading import ReaderPool, read_failure
from dsv4_mlx.paging.slots import SlotTable
from dsv4_mlx.paging.stats import LayerStats
from dsv4_mlx.paging.turn import Turn
from dsv4_mlx.reference.expert_ffn import add_in_order
from dsv4_mlx.weights.records import RecordMap

FEW_ROWS = 16  # up to so many tokens a run's output is kept until its slots are needed, else computed at once
GROUP = 8  # experts computed together while others are still being read, in a run of many rows

Ids = npt.NDArray[np.int64]


class PagedExperts:
    """`records` in `slots` slots. `advise`: hears x and may give the next layer its advice (see Pager)."""

    def __init__(
        self, records: RecordMap, slots: int, policy: Policy, pool: ReaderPool, dtype: mx.Dtype
    ) -> None:
        self.records, self.policy, self._pool, self._dtype = records, policy, pool, dtype
        self.bank = SlotBank(records, slots, dtype)
        self.table = SlotTable(slots, records.count)
        self.stats = LayerStats()
        self.lookahead: Callable[[mx.array], Callable[[], None]] | None = None
        self._reads: dict[int, Future[None]] = {}  # by expert: asked for and not reported to the table
        self._advised: set[int] = set()
        self._queued: list[tuple[int, mx.array]] = []  # epochs that may not be finished, and their outputs

    def routed(
        self, product: ExpertProduct, x: mx.array, ids: mx.array, weights: mx.array, beside: mx.array
    ) -> mx.array:
        """As model.tensors.ExpertSource. Raises Dsv4Error when a record can't be read."""
        wanted = np.array(ids)
        self._collect()
        self._finish()  # of the last run: done long ago, unless the caller has not evaluated it
        turn = Turn(self.table, self.policy, self.records.disk_order(_distinct(wanted)))
        self._count(turn)
        self._give_up_advice(turn)
        if not turn.misses and not turn.early:
            out = self._together(product, x, wanted, weights, turn)
        else:
            out = self._in_groups(product, x, wanted, weights, beside, turn)
        if wanted.shape[0] * wanted.shape[1] > FEW_ROWS:
            self._finish()
        return out

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

    def settle(self) -> None:
        """Wait for all reads and all work; afterwards the bank may be replaced."""
        if self._reads:
            wait(self._reads.values())
        self._collect()
        self._finish()

    def _together(
        self, product: ExpertProduct, x: mx.array, wanted: Ids, weights: mx.array, turn: Turn
    ) -> mx.array:
        """Every expert is loaded: one product, as with all experts in memory."""
        epoch = self.table.use(turn.group())
        out = product(x, self._slots(wanted), weights, *self.bank.banks())
        self._queued.append((epoch, out))
        return out

    def _in_groups(
        self,
        product: ExpertProduct,
        x: mx.array,
        wanted: Ids,
        weights: mx.array,
        beside: mx.array,
        turn: Turn,
    ) -> mx.array:
        """Groups of experts as they come. A row is one (token, expert) pair."""
        batch, tokens, count = wanted.shape
        worth = GROUP if batch * tokens > FEW_ROWS else wanted.size
        flat, x = wanted.reshape(-1), x.reshape(-1, x.shape[-1])
        weights = weights.reshape(-1)
        rows: list[Ids] = []
        outs: list[mx.array] = []
        mx.async_eval(beside)  # type: ignore[no-untyped-call]
        while not turn.done:
            for expert in turn.reads():
                self._read(expert)
            group = turn.group(worth)
            if not group:
                self._wait(turn)
                continue
            at = np.flatnonzero(np.isin(flat, group))
            rows.append(at)
            epoch = self.table.use(group)
            one = (1, len(at), 1)
            out = product(
                x[mx.array(at // count)][None],
                self._slots(flat[at]).reshape(one),
                weights[mx.array(at)].reshape(one),
                *self.bank.banks(),
            )[0]
            outs.append(out)
            self._queued.append((epoch, out))
            if turn.blocked:
                self._finish()
            elif not turn.done:
                mx.async_eval(out)  # type: ignore[no-untyped-call]
        back = np.empty(flat.size, np.int64)
        back[np.concatenate(rows)] = np.arange(flat.size)
        products = mx.concatenate(outs)[mx.array(back)]
        return add_in_order(products.reshape(batch, tokens, count, -1))

    def _slots(self, experts: Ids) -> mx.array:
        slot_of = np.array(self.table.slot_of, np.int32)
        return mx.array(slot_of[experts].astype(np.uint32))

    def _read(self, expert: int) -> None:
        slot = self.table.slot_of[expert]
        self.stats.bytes += self.records.read_bytes
        self._reads[expert] = self._pool.submit(self.records, expert, self.bank.memory(slot))

    def _wait(self, turn: Turn) -> None:
        """Until one more expert is here. Raises the error of a read that failed for this run."""
        started = time.perf_counter()
        waiting = [self._reads[e] for e in turn.reading] or list(self._reads.values())
        if not waiting:
            raise RuntimeError("a run of a layer waits for nothing")
        wait(waiting, return_when=FIRST_COMPLETED)
        self.stats.stall += time.perf_counter() - started
        for expert, error in self._collect_for(turn):
            if expert in turn.misses:
                raise error

    def _collect(self) -> list[tuple[int, Dsv4Error]]:
        """Report reads that ended to the table; those that failed."""
        failed = []
        for expert in [e for e, future in self._reads.items() if future.done()]:
            future = self._reads.pop(expert)
            self._advised.discard(expert)
            error = None if future.cancelled() else read_failure(future)
            if error is None and not future.cancelled():
                self.table.filled(expert)
                continue
            self.table.failed(expert)
            if error is not None:
                failed.append((expert, error))
        return failed

    def _give_up_advice(self, turn: Turn) -> None:
        """Reads that were advised, have not begun and are not needed would only be in the way."""
        for expert in self._advised - set(turn.early):
            self._reads[expert].cancel()
        self._collect_for(turn)

    def _collect_for(self, turn: Turn) -> list[tuple[int, Dsv4Error]]:
        """As _collect. What failed as advice and is needed after all is read once more in its own name."""
        failed = self._collect()
        for expert, _ in failed:
            if expert in turn.early:
                turn.again(expert)
        return [one for one in failed if one[0] not in turn.early]

    def _finish(self) -> None:
        """Compute what is queued, so that its slots may be written."""
        if self._queued:
            mx.eval([out for _, out in self._queued])
            self.table.finish(self._queued[-1][0])
            self._queued.clear()

    def _count(self, turn: Turn) -> None:
        self.stats.runs += 1
        self.stats.hits += len(turn.hits)
        self.stats.early += len(turn.early)
        self.stats.misses += len(turn.misses)


def _distinct(wanted: Ids) -> list[int]:
    if wanted.size <= FEW_ROWS:
        return list({int(e) for e in wanted.ravel()})
    return [int(e) for e in np.unique(wanted)]
