"""Which expert is in which slot of one bank, and when a slot may be written. Pure: bookkeeping only.

    empty --claim--> reading --filled--> ready --claim--> reading ...
                        `------failed--> empty

A slot that computation reads carries the epoch of its last use. Work of an epoch is queued, not done, until
`finish(epoch)` says so; a slot is never claimed before that. Every rule is checked: breaking one is a bug of
this program that would show as wrong numbers, so it raises RuntimeError instead.

The bank of one layer: the slots' memory, which the readers write into, as matrices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import mlx.core as mx

from dsv4_mlx.ops.types import Bank
from dsv4_mlx.paging.slot_memory import SlotMemory
from dsv4_mlx.weights.records import RecordMap
from dsv4_mlx.weights.resident_experts import expert_banks

EMPTY = -1


class SlotTable:
    """`slots` slots for the experts 0 .. experts - 1. Not for use by two threads.

    `claim`, `filled`, `failed`, `use` and `finish` change the table. What others answer is valid until the
    next of these; an expert that `use` was told of stays in its slot until `finish` of that epoch.
    """

    def __init__(self, slots: int, experts: int) -> None:
        if slots < 1:
            raise ValueError(f"a bank has at least one slot, not {slots}")
        self.slots, self.experts = slots, experts
        self.slot_of = [EMPTY] * experts  # reading or ready
        self.expert_of = [EMPTY] * slots
        self._ready = [False] * slots
        self._used = [0] * slots
        self._free = list(range(slots - 1, -1, -1))
        self.epoch = 0  # of the last use
        self.finished = 0

    def ready(self, expert: int) -> bool:
        """Whether the expert can be computed with."""
        slot = self.slot_of[expert]
        return slot != EMPTY and self._ready[slot]

    def reading(self, expert: int) -> bool:
        """Whether the expert has a slot whose bytes are not all there yet."""
        slot = self.slot_of[expert]
        return slot != EMPTY and not self._ready[slot]

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def loaded(self, besides: Collection[int] = ()) -> list[int]:
        """Experts that may be given up, but for `besides`: ready, and nothing unfinished reads them."""
        return [
            expert
            for slot, expert in enumerate(self.expert_of)
            if expert != EMPTY and self._ready[slot] and self._used[slot] <= self.finished
            if expert not in besides
        ]

    def busy(self, besides: Collection[int] = ()) -> bool:
        """Whether `finish` would let more experts be given up."""
        return any(
            expert != EMPTY and self._ready[slot] and self._used[slot] > self.finished
            for slot, expert in enumerate(self.expert_of)
            if expert not in besides
        )

    def claim(self, expert: int, victim: int | None = None) -> int:
        """A slot to read `expert` into: an empty one, or that of `victim`, which is given up at once.

        The expert's until it is given up itself, or its reading `failed`.
        """
        if self.slot_of[expert] != EMPTY:
            raise RuntimeError(f"expert {expert} has a slot already")
        if victim is None:
            if not self._free:
                raise RuntimeError("no slot is empty")
            slot = self._free.pop()
        else:
            slot = self.slot_of[victim]
            if slot == EMPTY or not self._ready[slot]:
                raise RuntimeError(f"expert {victim} is not loaded and can't be given up")
            if self._used[slot] > self.finished:
                raise RuntimeError(f"slot {slot} is read by work that has not finished")
            self.slot_of[victim] = EMPTY
        self.expert_of[slot], self.slot_of[expert], self._ready[slot] = expert, slot, False
        return slot

    def filled(self, expert: int) -> None:
        """The expert's bytes are in its slot: it is ready until it is given up."""
        slot = self._reading(expert)
        self._ready[slot] = True

    def failed(self, expert: int) -> None:
        """Reading failed, or was given up before it began: the slot is empty again."""
        slot = self._reading(expert)
        self.expert_of[slot], self.slot_of[expert] = EMPTY, EMPTY
        self._free.append(slot)

    def use(self, experts: Iterable[int]) -> int:
        """Work that reads these experts is being queued: the epoch to `finish` when it is done.

        Until then none of them can be given up.
        """
        self.epoch += 1
        for expert in experts:
            slot = self.slot_of[expert]
            if slot == EMPTY or not self._ready[slot]:
                raise RuntimeError(f"expert {expert} is computed with but not loaded")
            self._used[slot] = self.epoch
        return self.epoch

    def finish(self, epoch: int) -> None:
        """All work of this epoch and of those before it is done: their experts may be given up."""
        if epoch > self.epoch:
            raise RuntimeError(f"epoch {epoch} has not begun, the last is {self.epoch}")
        self.finished = max(self.finished, epoch)

    def resize(self, slots: int, kept: int) -> None:
        """Have `slots` slots, of which the first `kept` are as they were. Experts of the others are given up.

        Nothing may be reading, and all work done.
        """
        if self.epoch > self.finished or any(self.reading(e) for e in range(self.experts)):
            raise RuntimeError("slots are changed while they are read or written")
        for expert in self.expert_of[kept:]:
            if expert != EMPTY:
                self.slot_of[expert] = EMPTY
        more = slots - kept
        self.expert_of = self.expert_of[:kept] + [EMPTY] * more
        self._ready, self._used = self._ready[:kept] + [False] * more, self._used[:kept] + [0] * more
        self._free = [slot for slot in range(slots - 1, -1, -1) if self.expert_of[slot] == EMPTY]
        self.slots = slots

    def _reading(self, expert: int) -> int:
        slot = self.slot_of[expert]
        if slot == EMPTY or self._ready[slot]:
            raise RuntimeError(f"expert {expert} is not being read")
        return slot


class SlotBank:
    """`slots` records in one array and the matrices in it as views.

    The array is never assigned to and no other owner exists, so MLX never moves or copies it: bytes written
    to `memory(slot)` are what the views show to work queued afterwards. Who writes makes sure that no queued
    work reads that slot (slots.SlotTable).
    """

    def __init__(self, records: RecordMap, slots: int, dtype: mx.Dtype) -> None:
        self.record_bytes = records.record_bytes
        self._layout, self._dtype = records.slots(slots), dtype
        self._memory = SlotMemory(slots, records.record_bytes)
        self._views: tuple[Bank, Bank] | None = None

    @property
    def slots(self) -> int:
        return self._memory.slots

    @property
    def nbytes(self) -> int:
        return self.slots * self.record_bytes

    def resize(self, slots: int) -> int:
        """Have so many slots, at most as many as at first; how many of the first hold what they held.

        Nothing is copied. No work that reads the bank may be queued; what `banks` gave is no longer valid.
        """
        self._views = None
        return self._memory.resize(slots)

    def memory(self, slot: int) -> memoryview:
        """The bytes of one slot, writable: what is written changes what the views show."""
        return self._memory.bytes[slot * self.record_bytes : (slot + 1) * self.record_bytes]

    def banks(self) -> tuple[Bank, Bank]:
        """gate|up [S, 2 I, D] and down [S, D, I], S slots or more, as the model multiplies with them.

        Valid until `resize`, except with scales that are cast: those are a copy, made at every call.
        """
        if self._views is None:
            banks = expert_banks(self._memory.array, self._layout, self._dtype)
            if self._layout.format == "affine4" and self._dtype != mx.bfloat16:
                return banks  # scales are cast: a copy that a later read would not reach
            mx.eval([part for bank in banks for part in bank if isinstance(part, mx.array)])
            self._views = banks
        return self._views
