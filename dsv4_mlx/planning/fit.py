"""Which recipe runs how in so much memory: all experts in it, or read when needed. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.memory import largest_context, state_bytes, workspace
from dsv4_mlx.paging.sizing import Experts

PAGED_CONTEXT = 16_384  # what a model whose experts don't all fit is sized for


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
class Fit:
    """How a model runs within `limit` bytes: `slots` experts of each layer in memory, `context` tokens.

    `how`: "resident", "paged" or "too large". `need` is for the least that runs: 4,096 tokens of context, and
    all experts (resident) or one per layer (paged, too large).
    """

    name: str
    how: str
    bytes: int
    need: int
    slots: int
    context: int


def fit(model: Stored, config: ModelConfig, limit: int, element: int) -> Fit:
    """`element`: bytes of a number in the state's rows."""
    every = model.experts.count
    context = largest_context(config, model.memory, limit, element)
    if context:
        return Fit(model.name, "resident", model.bytes, _need(model, every, config, element), every, context)
    state = state_bytes(config, PAGED_CONTEXT, element).session
    room = limit - model.others - workspace(model.memory) - state
    slots = model.experts.slots(max(0, room))
    need = _need(model, 1, config, element)
    if slots < 1:
        return Fit(model.name, "too large", model.bytes, need, 0, 0)
    return Fit(model.name, "paged", model.bytes, need, slots, PAGED_CONTEXT)


def _need(model: Stored, slots: int, config: ModelConfig, element: int) -> int:
    weights = model.others + model.experts.bytes(slots)
    return weights + workspace(weights) + state_bytes(config, 4096, element).session


def smallest(fits: Sequence[Fit]) -> Fit:
    """The one that needs least."""
    return min(fits, key=lambda f: f.need)
