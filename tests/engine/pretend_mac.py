"""A Mac of any size as far as MLX tells: the calls that set its memory are recorded, the CPU computes."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import pytest


@dataclass
class PretendMac:
    """Bytes. `resident`: what is said to be in memory; None: what is."""

    memory: int
    working_set: int
    resident: int | None = None
    wired: list[int] = field(default_factory=list)  # one for each call

    def wire(self, limit: int) -> int:
        if limit > self.working_set:
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than the maximum.")
        self.wired.append(limit)
        return 0

    def install(self, patch: pytest.MonkeyPatch) -> PretendMac:
        active = mx.get_active_memory
        device = {
            "device_name": "Apple M3 Ultra",
            "memory_size": self.memory,
            "max_recommended_working_set_size": self.working_set,
        }
        patch.setattr(mx.metal, "is_available", lambda: True)
        patch.setattr(mx, "device_info", lambda: device)
        patch.setattr(mx, "set_wired_limit", self.wire)
        patch.setattr(mx, "get_active_memory", lambda: active() if self.resident is None else self.resident)
        return self
