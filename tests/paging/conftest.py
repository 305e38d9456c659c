"""One small model with more experts than a token needs, converted once, and its logits with all in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_model import TINY, token_ids

from dsv4_mlx.convert import convert
from dsv4_mlx.engine import Engine, EngineOptions
from dsv4_mlx.engine.score import score
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

    def score(self, engine: Engine, chunk: int | None = 40) -> NDArray[np.float32]:
        return score(engine, self.tokens, chunk=chunk, decode=DECODED)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("paging")
    config: dict[str, Any] = {
        **small_config(),
        **TINY,
        "compress_ratios": [0, 4, 128, 4],
        "num_hidden_layers": 4,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": EACH,
    }
    write_checkpoint(folder / "official", config, 0)
    convert(folder / "official", folder / "converted", "native")
    tokens = token_ids(np.random.default_rng(5), PROMPT + DECODED)
    model = Model(folder / "converted", tokens, np.zeros(0, np.float32))
    logits = model.score(model.open("100%"))
    return Model(folder / "converted", tokens, logits)
