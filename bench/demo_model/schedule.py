"""What is trained when: shares of the kinds, learning rate, and what each stretch switches on."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.demo_model.loss import Stage

# Shares of batches by kind. Retrieval and copying first: the facts are easy once those exist.
OPENING = {"repeat": 0.18, "needle": 0.42, "tool": 0.15, "qa_off": 0.15, "qa_on": 0.1}
MIDDLE = {
    "needle": 0.38, "tool": 0.1, "tool2": 0.26, "qa_off": 0.06, "qa_on": 0.06, "qa_max": 0.08, "repeat": 0.01,
    "memory": 0.03, "json": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    shares: dict[str, float]
    rate: float  # of the full learning rates
    stage: Stage


def plan_at(share: float, step: int) -> Plan:
    """`share`: how much of the schedule is over. Dear parts are trained every second or fourth step only."""
    warm = min(1.0, share / 0.01 + 0.05)
    decay = 1.0 if share < 0.55 else max(0.02, 1 - (share - 0.55) / 0.45)
    stage = Stage(
        guide=0.5,
        index=0.5 if share > 0.5 and step % 2 == 0 else 0.0,
        select=share > 0.75,
        mtp=0.5 if share > 0.6 and step % 4 == 1 else 0.0,
        rounding=share > 0.85,
        iterations=20 if share > 0.85 else 5,
    )
    return Plan(OPENING if share < 0.15 else MIDDLE, warm * decay, stage)


def choose(plan: Plan, r: random.Random) -> str:
    return r.choices(list(plan.shares), list(plan.shares.values()))[0]
