"""Memory for the slots of one layer: one array, allocated once, that the readers write into."""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.types import Bank
from dsv4_mlx.weights.records import RecordMap
from dsv4_mlx.weights.resident_experts import ResidentExperts, room


class SlotBank:
    """`slots` records in one array uint32 [slots, record / 4] and the matrices in it as views.

    The array is never assigned to and no other owner exists, so MLX never moves or copies it: bytes written
    to `memory(slot)` are what the views show to work queued afterwards. Who writes makes sure that no queued
    work reads that slot (slots.SlotTable).
    """

    def __init__(self, records: RecordMap, slots: int, dtype: mx.Dtype) -> None:
        self.slots, self.record_bytes = slots, records.record_bytes
        self._layout, self._dtype = records.slots(slots), dtype
        self._array = room(slots, records.record_bytes)
        self._bytes = memoryview(self._array).cast("B")  # type: ignore[arg-type]
        self._views: tuple[Bank, Bank] | None = None

    @property
    def nbytes(self) -> int:
        return self.slots * self.record_bytes

    def memory(self, slot: int) -> memoryview:
        """The bytes of one slot, writable."""
        return self._bytes[slot * self.record_bytes : (slot + 1) * self.record_bytes]

    def banks(self) -> tuple[Bank, Bank]:
        """gate|up and down over all slots, as the model multiplies with them."""
        if self._views is None:
            views = ResidentExperts(self._array, self._layout, self._dtype)
            banks = views.gate_up, views.down
            if self._layout.format == "affine4" and self._dtype != mx.bfloat16:
                return banks  # scales are cast: a copy that a later read would not reach
            mx.eval([part for bank in banks for part in bank if isinstance(part, mx.array)])
            self._views = banks
        return self._views
