"""What a machine allows, and what this model costs on it: predicted, from counts and published figures."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_mlx.planning.timeline import Costs, DiskSpeed

GB = 1e9
LAYERS, EXPERTS, EACH, RECORD = 43, 256, 6, 13_369_344
HASHED = 3  # layers whose experts are known with the token
DENSE_BYTES = 9.03 * GB  # all else in memory: docs/model.md, lossless layout
SHARED_BYTES = 1.116 * GB
HEAD_BYTES = 1.06 * GB
WORKSPACE = 2.5 * GB  # activations, buffer cache, a conversation of some thousand tokens, the program
SYSTEM = 6 * GB  # what macOS and other programs keep of the memory the GPU may not use
DISPATCH = 2.6e-6  # seconds; 2.4 to 2.75 us reported for an M3 Ultra
SYNC = 0.3e-3  # seconds; 0.2 to 0.35 ms reported for an M4
EFFICIENCY = 0.75  # of the memory bandwidth that a chain of small products reaches


@dataclass(frozen=True)
class Mac:
    """A machine by its published figures: memory in GB, memory and disk speed in GB/s."""

    name: str
    memory: int
    bandwidth: float
    disk: float
    cached: float = 12.0  # GB/s of records that are in the page cache

    @property
    def gpu(self) -> float:
        """Bytes the GPU may use: two thirds up to 36 GB, three quarters above."""
        return self.memory * GB * (2 / 3 if self.memory <= 36 else 3 / 4)

    @property
    def slots(self) -> int:
        """Slots of a layer. At most all experts."""
        room = self.gpu - DENSE_BYTES - WORKSPACE
        return max(0, min(EXPERTS, int(room // (LAYERS * RECORD))))

    @property
    def page_cache(self) -> int:
        """Records of a layer that the rest of the memory can hold."""
        room = self.memory * GB - self.gpu - SYSTEM
        return max(0, min(EXPERTS - self.slots, int(room // (LAYERS * RECORD))))

    def disk_figures(self) -> DiskSpeed:
        return DiskSpeed(latency=0.1e-3, speed=self.disk * GB, cached=self.cached * GB)

    def costs(self, dispatches: int, step_bytes: float) -> Costs:
        """A step of `dispatches` that moves `step_bytes` of weights and rows, routed experts included.

        The launches are spread evenly over layers; a tenth of a layer's belongs to its shared expert.
        """
        speed = self.bandwidth * GB * EFFICIENCY
        launch = dispatches * DISPATCH / LAYERS
        expert, shared = RECORD / speed, SHARED_BYTES / LAYERS / speed
        before = (
            step_bytes - LAYERS * EACH * RECORD - SHARED_BYTES - HEAD_BYTES
        ) / LAYERS / speed + 0.9 * launch
        return Costs(before, shared + 0.1 * launch, expert, SYNC, HEAD_BYTES / speed)
