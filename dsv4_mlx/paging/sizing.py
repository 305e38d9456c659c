"""How many slots: what was asked for, what fits, and why. Pure arithmetic, before anything is loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from dsv4_mlx.errors import DoesNotFit, UsageError
from dsv4_mlx.machine.units import parse_size, size

OPTION = "--expert-memory"
FORMS = "auto, a size such as 24GB or 16GiB, a share such as 25%, or slots per layer such as 6x"
DRAFT = "mtp."  # draft blocks: rarely run, so they get no more slots than a token needs


@dataclass(frozen=True)
class MemoryRequest:
    """`--expert-memory` as it was given. `amount` is bytes, a share from 0 to 1, or slots per layer."""

    kind: Literal["auto", "bytes", "share", "slots"] = "auto"
    amount: float = 0.0
    text: str = "auto"


def parse(text: str) -> MemoryRequest:
    """Raises UsageError that names what would be right."""
    word = text.strip().upper()
    if word == "AUTO":
        return MemoryRequest()
    asked = parse_size(text)
    if asked is not None:
        return MemoryRequest("bytes", asked, text)
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(%|X)", word)
    if found is None:
        raise UsageError(f"{OPTION} is {text!r}, expected {FORMS}", next=f"{OPTION} auto")
    number, unit = float(found[1]), found[2]
    if unit == "X":
        if number != int(number):
            raise UsageError(f"{OPTION} is {text!r}: slots are whole numbers", next=f"{OPTION} 6x")
        return MemoryRequest("slots", number, text)
    if number > 100:
        raise UsageError(f"{OPTION} is {text!r}, expected at most 100%", next=f"{OPTION} auto")
    return MemoryRequest("share", number / 100, text)


@dataclass(frozen=True)
class Experts:
    """The routed experts of a model: `layers` layers of `count` records; a token needs `each` of a layer.

    `drafts` draft blocks have as many.
    """

    layers: int
    count: int
    each: int
    record_bytes: int
    drafts: int = 0

    def bytes(self, slots: int) -> int:
        """Memory of `slots` slots in every layer."""
        return (self.layers * slots + self.drafts * self.draft_slots(slots)) * self.record_bytes

    def draft_slots(self, slots: int) -> int:
        return self.count if slots >= self.count else min(slots, self.each)

    def slots(self, room: float) -> int:
        """The most slots per layer that `room` bytes hold."""
        slots = min(self.count, max(0, int(room // (self.layers * self.record_bytes))))
        while slots and self.bytes(slots) > room:
            slots -= 1
        return slots

    def auto_slots(self, room: int, reserve: int = 0, spare: int | None = None) -> int:
        """What `--expert-memory auto` takes of `room` bytes: all experts where `spare` of them, all unless
        given, are enough, or else what `reserve` of them leaves, but those that a token needs, if they fit. 0
        if none fits."""
        if self.bytes(self.count) <= (room if spare is None else spare):
            return self.count
        least = min(self.each, self.slots(room))
        return max(least, self.slots(room - reserve)) if least else 0


@dataclass(frozen=True)
class ExpertMemory:
    """What was chosen, and a sentence that says why."""

    experts: Experts
    slots: int
    reason: str

    @property
    def resident(self) -> bool:
        return self.slots >= self.experts.count

    @property
    def nbytes(self) -> int:
        return self.experts.bytes(self.slots)

    def slots_of(self, block: str) -> int:
        return self.experts.draft_slots(self.slots) if block.startswith(DRAFT) else self.slots

    def __str__(self) -> str:
        e = self.experts
        if self.resident:
            return f"all {e.count} experts of each layer in memory, {size(self.nbytes)} ({self.reason})"
        return (
            f"{self.slots} of {e.count} experts of each layer in memory, {size(self.nbytes)} of "
            f"{size(e.bytes(e.count))}; the rest is read when needed ({self.reason})"
        )


def choose(
    asked: MemoryRequest, experts: Experts, room: int, reserve: int = 0, spare: int | None = None
) -> ExpertMemory:
    """Slots for what was asked; `room` is what the machine has left for experts, in bytes.

    auto leaves `reserve` of it to the page cache and to other programs, if not all experts fit in `spare`.
    Raises UsageError below one slot per layer, DoesNotFit above `room`; both name the number that would do.
    """
    least = experts.bytes(1)
    if asked.kind == "auto":
        slots = experts.auto_slots(room, reserve, spare)
        if not slots:
            raise DoesNotFit(
                f"this machine has {size(max(0, room))} left for routed experts, "
                f"the least is one per layer: {size(least)}",
                next="use a smaller --context, close other programs, or use a machine with more memory",
            )
        some = slots < experts.count
        others = "the page cache and other programs"
        kept = f", {size(reserve)} of it kept for {others}" if reserve and some else ""
        return ExpertMemory(experts, slots, f"auto: {size(room)} are left for them{kept}")
    if asked.kind == "slots":
        slots = int(asked.amount)
    elif asked.kind == "share":
        slots = min(experts.count, math.floor(asked.amount * experts.count + 1e-9))
    else:
        full = asked.amount >= experts.bytes(experts.count)
        slots = experts.count if full else experts.slots(asked.amount)
    slots = min(slots, experts.count)
    if slots < 1:
        raise UsageError(
            f"{OPTION} {asked.text} is less than one expert per layer",
            next=f"the least is {OPTION} 1x, {size(least)}",
        )
    if experts.bytes(slots) > room:
        fits = experts.slots(room)
        raise DoesNotFit(
            f"{OPTION} {asked.text} needs {size(experts.bytes(slots))}, "
            f"this machine has {size(max(0, room))} left for routed experts",
            next=f"{OPTION} {fits}x is the most that fits" if fits else "use a smaller --context",
        )
    return ExpertMemory(experts, slots, f"{OPTION} {asked.text}")
