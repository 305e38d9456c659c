"""How many slots there may be while the machine is short of memory. Pure: told the pressure and the time."""

from __future__ import annotations

from dsv4_mlx.machine.limits import Pressure

LOOK_EVERY = 0.5  # seconds
SHRINK = {Pressure.WARNING: 0.75, Pressure.CRITICAL: 0.5}  # to so much of what there is
SHRINK_EVERY = 5.0  # seconds: what was given back must show before more is
CALM = 60.0  # seconds without pressure before slots come back
GROW_EVERY = 10.0  # seconds
GROW = 1 / 16  # of all slots, each time


class PressureController:
    """Shrinks at once, grows slowly, never above the slots that were announced nor below one."""

    def __init__(self, most: int) -> None:
        self.most = self.slots = most
        self._next_look = self._next_shrink = self._next_growth = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it is time to look at the pressure; looking costs a system call."""
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        return True

    def decide(self, pressure: Pressure, now: float) -> int:
        """Slots per layer from now on. `now`: seconds of a clock that never goes back."""
        if pressure == Pressure.NORMAL:
            if self.slots < self.most and now >= self._next_growth:
                self.slots = min(self.most, self.slots + max(1, int(self.most * GROW)))
                self._next_growth = now + GROW_EVERY
            return self.slots
        self._next_growth = now + CALM
        if now >= self._next_shrink:
            self.slots = max(1, int(self.slots * SHRINK[pressure]))
            self._next_shrink = now + SHRINK_EVERY
        return self.slots
