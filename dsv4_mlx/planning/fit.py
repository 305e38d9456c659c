"""Which recipe runs how in so much memory: all experts in it, or read when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.memory import expert_room, largest_context, state_bytes, workspace
from dsv4_mlx.machine.limits import installed_memory, memory_limit, page_cache_share
from dsv4_mlx.machine.macs import default_gpu_limit, page_cache_room
from dsv4_mlx.paging.sizing import Experts
from dsv4_mlx.weights.load import activation_dtype

# What a model whose experts don't all fit is sized for: the longest of these that costs no more than a
# twentieth of the experts that the shortest leaves in memory.
PAGED_CONTEXTS = (131_072, 65_536, 32_768, 16_384)
WORTH = 0.95


@dataclass(frozen=True)
class Stored:
    """A model's bytes: all files, and its routed experts in memory. `repeated`: bytes of scales that are
    made when it is read, which no file has. `idle`: of experts that are stored and not run, a drafter's."""

    name: str
    bytes: int
    experts: Experts
    repeated: int = 0
    idle: int = 0

    @property
    def memory(self) -> int:
        return self.bytes + self.repeated - self.idle

    @property
    def others(self) -> int:
        return self.memory - self.experts.bytes(self.experts.count)


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes: that a model may use (`limit`), of a number in the state's rows (`element`), that a model whose
    experts don't all fit leaves to the page cache (`reserve`), that this can hold (`page_cache`)."""

    limit: int
    element: int = 2
    reserve: int = 0
    page_cache: int = 0


def budget_here() -> MemoryBudget:
    """This machine's."""
    limit, reserve = memory_limit(), page_cache_share()
    page_cache = page_cache_room(installed_memory(), limit) if mx.metal.is_available() else reserve
    return MemoryBudget(limit, activation_dtype().size, reserve, page_cache)


def budget_of_mac(memory: int, macos: int = 15) -> MemoryBudget:
    """Of a Mac with so many bytes, as it comes."""
    limit = default_gpu_limit(memory, macos)
    return MemoryBudget(limit, page_cache=page_cache_room(memory, limit))


@dataclass(frozen=True)
class Fit:
    """How a model runs within a limit of bytes: `slots` experts of each layer in memory, `context` tokens.

    `bytes`: of its files. `need` is for the least that runs: 4,096 tokens of context, and all experts
    (resident) or one per layer (paged, too large).
    """

    name: str
    placement: Literal["resident", "paged", "too large"]
    bytes: int
    need: int
    slots: int
    context: int

    @property
    def rank(self) -> tuple[int, int]:
        """The larger the better."""
        return ("too large", "paged", "resident").index(self.placement), self.slots + self.context

    def describe(self) -> str:
        """For people."""
        return (
            f"{self.placement}, {self.slots} experts a layer" if self.placement == "paged" else self.placement
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the placement is called "how" there."""
        return {("how" if key == "placement" else key): value for key, value in asdict(self).items()}


def fit(model: Stored, config: ModelConfig, limit: int, element: int, reserve: int = 0) -> Fit:
    """Within `limit` bytes. `element`: bytes of a number in the state's rows. `reserve`: bytes that a model
    whose experts don't all fit leaves to the page cache."""
    every = model.experts.count
    context = largest_context(config, model.memory, limit, element)
    if context:
        return Fit(model.name, "resident", model.bytes, _need(model, every, config, element), every, context)
    contexts = [min(context, config.max_context) for context in PAGED_CONTEXTS]
    room = [expert_room(config, model.others, limit, context, element) for context in contexts]
    held = [model.experts.auto_slots(left, reserve) for left in room]
    context, slots = next((c, n) for c, n in zip(contexts, held, strict=True) if n >= WORTH * held[-1])
    need = _need(model, 1, config, element)
    if not slots:
        return Fit(model.name, "too large", model.bytes, need, 0, 0)
    return Fit(model.name, "paged", model.bytes, need, slots, context)


def _need(model: Stored, slots: int, config: ModelConfig, element: int) -> int:
    weights = model.others + model.experts.bytes(slots)
    return weights + workspace(weights) + state_bytes(config, 4096, element).session


def smallest(fits: Sequence[Fit]) -> Fit:
    """The one that needs least."""
    return min(fits, key=lambda f: f.need)
