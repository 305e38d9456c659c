"""The arrays of a stored model without their bytes: shapes and dtypes are the files', nothing is read."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from dsv4_mlx.checkpoint.manifest import ExpertTable
from dsv4_mlx.checkpoint.record import expand_scales
from dsv4_mlx.weights.official import DTYPES, OfficialArrays, OfficialModel
from dsv4_mlx.weights.records import RecordMap
from dsv4_mlx.weights.resident_experts import ResidentExperts
from dsv4_mlx.weights.stored import ArraySource, StoredModel


def blank_arrays(stored: StoredModel) -> ArraySource:
    """Those of a converted folder are lazy already; only hash tables are read."""
    if isinstance(stored, OfficialModel):
        return BlankOfficial(stored, lambda count: None)
    return stored.arrays(lambda count: None)


class BlankOfficial(OfficialArrays):
    """As the real ones, which are read when they are handed out, but for hash tables not evaluated."""

    def array(self, file: str, key: str) -> mx.array:
        entry = self._source.entry(key)
        if entry.dtype == "I64":
            return super().array(file, key)
        if key in self._scaled:
            blank = np.broadcast_to(np.uint8(0), entry.shape)
            return mx.zeros(expand_scales(blank, *self._scaled[key].shape).shape, mx.uint8)
        rows, *columns = entry.shape
        codes = entry.dtype == "F8_E4M3"
        return mx.zeros((rows, columns[0] // 4) if codes else entry.shape, DTYPES[entry.dtype])

    def records(self, block: str, table: ExpertTable) -> mx.array:
        return blank_records(table)


def blank_records(table: ExpertTable) -> mx.array:
    """As resident_experts.room, not evaluated."""
    return mx.zeros((table.count, table.record_bytes // 8), mx.uint64).view(mx.uint32)


class BlankSlots:
    """Slots for the experts of a layer, as a Pager gives them out, without memory."""

    def __init__(self, slots: int, dtype: mx.Dtype) -> None:
        self.slots, self.dtype = slots, dtype

    def __call__(self, block: str, records: RecordMap) -> ResidentExperts:
        layout = records.slots(self.slots)
        return ResidentExperts(blank_records(layout), layout, self.dtype)
