"""What advice from the next layer's router is worth: the demo model on its own text, half of its experts.

python -m bench.paging.advice [SLOTS]
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.hub.models import model_folder
from dsv4_mlx.paging.stats import total

PROMPTS = ("Which layers route by token?", "Tell me about the window.", "What is an expert?")
TOKENS = 80


def run(slots: str, advised: bool) -> dict[str, Any]:
    engine = Engine.open(
        model_folder("demo"), EngineOptions(context=2048, expert_memory=slots, expert_threads=2)
    )
    pager = engine.pager
    assert pager is not None
    layers = list(pager.layers.values())
    trust = [layer.predictor.trust for layer in layers if layer.predictor is not None]  # type: ignore[attr-defined]
    if not advised:
        for layer in layers:
            layer.predictor = None
    session, tokens = engine.session(), 0
    before = total(pager.stats())
    for prompt in PROMPTS:
        ids = engine.prompts.encode(engine.prompts.ask(prompt, "off"))
        for _ in generate(session, ids, SamplingOptions(seed=1), max_tokens=TOKENS):
            tokens += 1
    counted = total(pager.stats()) - before
    return {
        "advice from the next router": advised,
        "tokens": tokens,
        **{name: round(value / tokens, 3) for name, value in asdict(counted).items()},
        "share of advice that came true": [round(one.share, 2) for one in trust] if advised else None,
    }


def main() -> None:
    slots = sys.argv[1] if len(sys.argv) > 1 else "4x"
    for advised in (False, True):
        print(json.dumps(run(slots, advised)))


if __name__ == "__main__":
    main()
