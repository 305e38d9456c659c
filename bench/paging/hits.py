"""Decoding when nothing has to be read, against all experts in memory.

    python -m bench.paging.hits MODEL       MODEL: a converted folder

Both engines decode the same tokens in turn, a stretch each; the paged one has a slot for every expert and has
loaded them all. It is measured by both strategies: read per layer, and optimistic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dsv4_mlx.engine.engine import Engine, routed_experts
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.ops.table import NUMERICS, REFERENCE
from dsv4_mlx.paging.pager import Pager
from dsv4_mlx.paging.schedule import PagedSchedule
from dsv4_mlx.paging.sizing import ExpertMemory
from dsv4_mlx.paging.stats import total
from dsv4_mlx.tokenizer.template import Prompts
from dsv4_mlx.weights.load import activation_dtype, find_model, open_model

PROMPT, STRETCH, PAIRS = 64, 16, 60
CONTEXT = 4096


@dataclass
class Fixed:
    """A strategy that is never left."""

    optimistic: bool

    def learn(self, layers: int) -> None:
        pass


def all_slots(folder: Path) -> Engine:
    """An engine that pages with a slot for every expert: what no option asks for."""
    stored = find_model(folder)
    experts = routed_experts(stored.config, stored.manifest)
    pager = Pager(ExpertMemory(experts, experts.count, "for a measurement"), 2, activation_dtype())
    opened = open_model(stored, REFERENCE, NUMERICS["official"], None, pager.paged)
    pager.attach(opened.model)
    for layer in pager.layers.values():
        layer.advise(range(experts.count))
        layer.settle()
    prompts = Prompts(folder, stored.manifest.checkpoint)
    return Engine(stored.config, stored.manifest, opened.model, prompts, CONTEXT, pager)


def stretch(session: Session, tokens: list[int]) -> float:
    started = time.perf_counter()
    for token in tokens:
        session.advance(token)
    return (time.perf_counter() - started) / len(tokens)


def compare(resident: Engine, paged: Engine, optimistic: bool) -> dict[str, Any]:
    assert paged.pager is not None and isinstance(paged.model.schedule, PagedSchedule)
    paged.model.schedule.strategy = Fixed(optimistic)  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    tokens = [int(t) for t in rng.integers(8, resident.config.vocab_size, PROMPT + PAIRS * STRETCH)]
    sessions = {"resident": resident.session(), "paged": paged.session()}
    for session in sessions.values():
        session.sync(tokens[:PROMPT])
    before = total(paged.pager.stats())
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(PAIRS):
        part = tokens[PROMPT + i * STRETCH : PROMPT + (i + 1) * STRETCH]
        for name in sorted(sessions, reverse=bool(i % 2)):
            seconds[name].append(stretch(sessions[name], part))
    counted = total(paged.pager.stats()) - before
    assert counted.misses + counted.early == 0, "something was read"
    pairs = list(zip(seconds["resident"], seconds["paged"], strict=True))
    layers = len(resident.model.blocks)
    return {
        "form": "optimistic" if optimistic else "read per layer",
        "ms_per_token": {name: statistics.median(all_) * 1e3 for name, all_ in seconds.items()},
        "best_ms_per_token": {name: min(all_) * 1e3 for name, all_ in seconds.items()},
        "ratio": statistics.median(a / b for a, b in pairs),
        "ms_per_layer_more": statistics.median(b - a for a, b in pairs) * 1e3 / layers,
        "best_ms_per_layer_more": (min(seconds["paged"]) - min(seconds["resident"])) * 1e3 / layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    resident = Engine.open(options.model, EngineOptions(context=CONTEXT, expert_memory="100%"))
    paged = all_slots(options.model)
    mx.synchronize()
    found = [compare(resident, paged, optimistic) for optimistic in (False, True)]
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
