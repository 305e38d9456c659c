"""One small model with more experts than a token needs, and its logits with all in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from small_model import TINY, token_ids

from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.synthetic import small_config, write_checkpoint

EXPERTS, EACH = 20, 4
PROMPT, DECODED = 90, 12


@dataclass(frozen=True)
class Model:
    """A converted folder, a sequence of tokens, and the logits after each with all experts in memory."""

    folder: Path
    tokens: list[int]
    logits: NDArray[np.float32]

    def open(self, memory: str, **options: Any) -> Engine:
        return Engine.open(
            self.folder,
            EngineOptions(context=512, numerics="exact", expert_memory=memory, **options),
        )

    def official(self) -> Model:
        """The checkpoint that the folder was converted from, as a model."""
        return replace(self, folder=self.folder.parent / "official")

    def score(self, engine: Engine, chunk: int | None = 40) -> NDArray[np.float32]:
        return score(engine, self.tokens, chunk=chunk, decode=DECODED)


def make(folder: Path, recipe: str = "native", **changes: Any) -> Model:
    """Write, convert and open a checkpoint of random weights; `changes` to its config."""
    config: dict[str, Any] = {
        **small_config(),
        **TINY,
        "compress_ratios": [0, 4, 128, 4],
        "num_hidden_layers": 4,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": EACH,
        **changes,
    }
    write_checkpoint(folder / "official", config, 0)
    convert(folder / "official", folder / "converted", recipe)
    tokens = token_ids(np.random.default_rng(5), PROMPT + DECODED)
    model = Model(folder / "converted", tokens, np.zeros(0, np.float32))
    return replace(model, logits=model.score(model.open("100%")))
