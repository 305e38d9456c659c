"""All paged layers of one model: who they are, the threads they share, what they tell each other."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.errors import UsageError
from dsv4_mlx.paging.experts import PagedExperts
from dsv4_mlx.paging.policy import Lru
from dsv4_mlx.paging.reading import DiskReader, Files, ReaderPool
from dsv4_mlx.paging.sizing import ExpertMemory
from dsv4_mlx.paging.stats import LayerStats
from dsv4_mlx.weights.records import RecordMap

THREADS = 2  # before a measurement says better


class Pager:
    """Makes PagedExperts for a model that is being opened (`paged`), then looks after them."""

    def __init__(
        self, memory: ExpertMemory, threads: int | None, dtype: mx.Dtype, *, verify: bool = False
    ) -> None:
        self.memory, self._dtype, self._verify = memory, dtype, verify
        self.files = Files()
        self.pool = ReaderPool(DiskReader(self.files, verify=verify), threads or THREADS)
        self.layers: dict[str, PagedExperts] = {}

    def paged(self, block: str, records: RecordMap) -> PagedExperts:
        """The source of a block's experts. Raises InputError, MachineError for a file that can't be read."""
        for path, size in zip(records.files, records.sizes, strict=True):
            self.files.open(path, size)
        if self._verify and not records.layout.digests:
            raise UsageError(
                "an official checkpoint has no digests to verify reads with",
                next="convert it, or leave --verify-reads out",
            )
        slots = self.memory.slots_of(block)
        layer = PagedExperts(records, slots, Lru(records.count), self.pool, self._dtype)
        self.layers[block] = layer
        return layer

    def stats(self) -> list[LayerStats]:
        """Counts of every layer so far, in the order of the layers."""
        return [layer.stats.copy() for layer in self.layers.values()]

    def close(self) -> None:
        self.pool.close()
