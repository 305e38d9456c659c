"""Record the demo model's real routing over a long text.

    python -m bench.paging.record bench/results/routing_demo.npz

The text is dialogues of every kind the model was trained for, made anew, one after the other; the folder is
read as it is, in the official layout.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from bench.demo_model.dialogue import Renderer
from bench.demo_model.tasks import KINDS
from bench.paging.traces import Trace, save
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.model.tensors import ExpertSource, Routed

CHECKPOINT = Path(__file__).parents[2] / "dsv4_mlx" / "demo"
TOKENS = 8000  # of the 8192 that the model was trained for
SEED = 20  # not one of the training's


class Recorded:
    """Experts that note who was asked for."""

    def __init__(self, experts: ExpertSource, note: Callable[[mx.array], None]) -> None:
        self._experts, self._note = experts, note

    def routed(self, chunks: Sequence[Routed]) -> list[mx.array]:
        for chunk in chunks:
            self._note(chunk.ids)
        return self._experts.routed(chunks)


def text(folder: Path, tokens: int) -> list[int]:
    """Token ids of dialogues."""
    renderer, r = Renderer(folder), random.Random(SEED)
    ids: list[int] = []
    while len(ids) < tokens:
        ids += renderer.example(KINDS[r.choice(list(KINDS))](r)).ids
    return ids[:tokens]


def record(folder: Path, tokens: int = TOKENS) -> Trace:
    """The experts of every layer for every token of the text, each in the context of all before it."""
    engine = Engine.open(folder, EngineOptions(context=tokens, expert_memory="100%"))
    found: list[list[np.ndarray]] = [[] for _ in engine.model.blocks]

    for block, pieces in zip(engine.model.blocks, found, strict=True):

        def note(ids: mx.array, pieces: list[np.ndarray] = pieces) -> None:
            pieces.append(np.array(ids[0], dtype=np.int16))

        block.ffn.experts = Recorded(block.ffn.experts, note)
    engine.session().sync(text(folder, tokens))
    ids = np.stack([np.concatenate(pieces) for pieces in found], axis=1)
    return Trace("demo", engine.config.experts, ids)


if __name__ == "__main__":
    save(record(CHECKPOINT), Path(sys.argv[1]))
