"""Training the demo model: its ops compute what the runtime computes, and a short run learns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench.demo_model import train
from bench.demo_model.batches import make
from bench.demo_model.config import demo_config, model_config
from bench.demo_model.dialogue import Renderer
from bench.demo_model.export import export, trained
from bench.demo_model.fastops import Watch
from bench.demo_model.loss import Stage, build, gradient, losses
from bench.demo_model.tasks import KINDS
from bench.demo_model.tokenizer import build as build_tokenizer
from bench.demo_model.weights import Parameters, initial, tensors
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import EXACT, REFERENCE

CONFIG = model_config()


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder, demo_config()["vocab_size"])
    return Renderer(folder)


@pytest.mark.parametrize("length", [30, 64, 200])
def test_training_ops_compute_what_the_runtime_computes(length: int, rng: np.random.Generator) -> None:
    parameters = initial(CONFIG, 3)
    tokens = mx.array(rng.integers(0, CONFIG.vocab_size, (2, length)).astype(np.int32))
    fast = build(CONFIG, parameters, Stage(), Watch(select=True))
    found = fast.logits(fast.streams(tokens, fast.new_state(2, 128)))
    config = replace(CONFIG, sinkhorn_iterations=5)
    plain = Transformer(config, tensors(config, parameters), REFERENCE, EXACT)
    wanted = plain(tokens, plain.new_state(2))
    assert float(mx.abs(found - wanted).max()) < 1e-4 * float(mx.std(wanted))


def test_gradients_are_the_slope_of_the_loss(renderer: Renderer) -> None:
    """Along random directions, against a difference quotient.

    Every expert takes part and every row is seen: a choice is a step, not a slope. So is detaching the draft.
    """
    config = replace(CONFIG, experts_per_token=CONFIG.experts)
    batch = make("needle", 1, 160, random.Random(5), renderer)
    parameters = initial(config, 3)
    grads, _ = gradient(parameters, config, batch, Stage())
    random_ = np.random.default_rng(0)
    for part in (
        "embed",
        "hc_",
        "wq_",
        "wkv",
        "wo_",
        "compressor.w",
        "shared",
        "experts",
        "norm",
        "gate.weight",
    ):
        names = [name for name in parameters if part in name and "indexer" not in name and "mtp" not in name]
        direction = {
            n: mx.array(random_.standard_normal(parameters[n].shape).astype(np.float32)) for n in names
        }
        slope = _slope(
            parameters, direction, lambda p: float(np.array(losses(p, config, batch, Stage())[0])), 1e-3
        )
        predicted = sum(float(mx.sum(grads[n] * direction[n])) for n in names)
        assert predicted == pytest.approx(slope, rel=0.05, abs=0.02), part


def _slope(at: Parameters, direction: Parameters, loss: Callable[[Parameters], float], step: float) -> float:
    ends = [{n: v + s * step * direction[n] if n in direction else v for n, v in at.items()} for s in (1, -1)]
    return (loss(ends[0]) - loss(ends[1])) / (2 * step)


@pytest.mark.parametrize("kind", [*KINDS, "needle"])
def test_every_trained_token_is_one_the_assistant_says(kind: str, renderer: Renderer) -> None:
    batch = make(kind, 1, 900, random.Random(1), renderer)
    marks = renderer.prompts.markers
    assert batch.at.size == batch.labels.size > 0
    assert marks.end in batch.labels
    rows = batch.tokens.reshape(-1)
    assert (rows[batch.at + 1] == batch.labels).all()
    for row, (query, source, valid) in enumerate(zip(batch.query, batch.source, batch.valid, strict=True)):
        copied = batch.tokens[row]
        for q, s in zip(query[valid > 0], source[valid > 0], strict=True):
            assert copied[q + 1] == copied[s] and s <= q


@pytest.mark.long
def test_a_short_run_learns_and_its_checkpoint_speaks(tmp_path: Path) -> None:
    run, out, model = tmp_path / "run", tmp_path / "official", tmp_path / "model"
    for steps in (20, 40):  # the second call continues the first
        train.main(["--out", str(run), "--steps", str(steps), "--tokens", "512", "--workers", "1"])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 20, 40, 40]
    loss = [figures["loss"] for line in lines[1::2] for figures in [line["kinds"]["needle"]]]
    assert loss[1] < loss[0] - 0.3 and loss[1] < np.log(CONFIG.vocab_size) - 1
    export(trained(run), (run / "tokenizer.json").read_text(), out)
    convert(out, model)
    engine = Engine.open(model)
    prompt = engine.prompts.encode(engine.prompts.ask("What is MLX?", "off"))
    assert list(generate(engine.session(), prompt, SamplingOptions(temperature=0.0), max_tokens=3))
