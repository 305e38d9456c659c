"""Private memory of a process that pages, watched over a long answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
from small_model import TINY

from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine, routed_experts, weight_bytes
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.memory import state_bytes
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.engine.session_rows import sample
from dsv4_mlx.synthetic import small_config, write_checkpoint

GROWTH_STEP = 1024  # tokens
PROMPT = [0, *range(20, 60)]
# Experts of 0.8 MB: banks are most of what the process holds, and a token costs milliseconds.
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 2,
}


def wide_folder(folder: Path) -> Path:
    write_checkpoint(folder / "official", {**small_config(), **TINY, **WIDE}, 0)
    convert(folder / "official", folder / "converted", "native")
    return folder / "converted"


def private() -> int:
    """Bytes of this process's own memory: what no file backs, MLX's arrays included on a CPU."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def watch(folder: str, memory: str, tokens: int, context: int, send: Any) -> None:
    """In a process of its own: the budget, and each 100 tokens (tokens, private bytes added, MLX active)."""
    warm_up = mx.zeros((1,))
    mx.eval(warm_up)
    before = private()
    engine = Engine.open(Path(folder), EngineOptions(context=context, expert_memory=memory, expert_threads=4))
    assert engine.pager is not None
    session = engine.session(growth=GROWTH_STEP)
    session.sync(PROMPT)
    mx.clear_cache()
    state = state_bytes(engine.config, context, engine.model.dtype.size, GROWTH_STEP).total
    stored = weight_bytes(engine.manifest)
    experts = routed_experts(engine.config, engine.manifest)
    announced = engine.pager.memory.nbytes + stored - experts.bytes(experts.count) + state
    samples = []
    sampler = Sampler(SamplingOptions(seed=1), prompt=len(PROMPT))
    while len(session.tokens) < tokens:
        session.feed(sample(session, sampler))
        session.settle()
        if len(session.tokens) % 100 == 0:
            samples.append((len(session.tokens), private() - before, mx.get_active_memory()))
    send.send((announced, engine.pager.memory.nbytes, samples))
