"""Which recipe runs how in so much memory: all experts in it, or read when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import mlx.core as mx

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.memory import expert_room, largest_context, state_bytes, workspace
from dsv4_mlx.machine.limits import installed_memory, memory_limit, others_share, page_cache_share
from dsv4_mlx.machine.macs import default_gpu_limit, left_to_page_cache, page_cache_room, wirable
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
    experts don't all fit leaves to the page cache (`reserve`), that this can hold (`page_cache`), that other
    programs hold of the limit now (`taken`); whether it is a Mac's (`mac`)."""

    limit: int
    element: int = 2
    reserve: int = 0
    page_cache: int = 0
    taken: int = 0
    mac: bool = True


def budget_here() -> MemoryBudget:
    """This machine's."""
    limit, reserve, taken = memory_limit(), page_cache_share(), others_share()
    on_a_mac = mx.metal.is_available()
    page_cache = page_cache_room(installed_memory(), limit - reserve) if on_a_mac else reserve
    return MemoryBudget(limit, activation_dtype().size, reserve, page_cache, taken, on_a_mac)


def budget_of_mac(memory: int, macos: int = 15, working_set: int | None = None) -> MemoryBudget:
    """Of a Mac with so many bytes, as it comes, or with a GPU's `working_set` that its user chose."""
    own = default_gpu_limit(memory, macos)
    chosen = own if working_set is None else working_set
    limit, reserve = wirable(memory, chosen), left_to_page_cache(memory, chosen, own)
    return MemoryBudget(limit, reserve=reserve, page_cache=page_cache_room(memory, limit - reserve))


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


def fit(model: Stored, config: ModelConfig, budget: MemoryBudget) -> Fit:
    """As `--expert-memory auto` has it within the budget."""
    limit, element, every = budget.limit, budget.element, model.experts.count
    context = largest_context(config, model.memory, limit - budget.taken, element)
    if context:
        return Fit(model.name, "resident", model.bytes, _need(model, every, config, element), every, context)
    contexts = [min(context, config.max_context) for context in PAGED_CONTEXTS]
    reserve, limits = max(budget.reserve, budget.taken), (limit, limit - budget.taken)
    rooms = [[expert_room(config, model.others, most, c, element) for most in limits] for c in contexts]
    held = [model.experts.auto_slots(room, reserve, spare) for room, spare in rooms]
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
