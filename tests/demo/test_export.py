"""What is written in the official formats is what is read from them, by two decoders."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench.demo_model.compare import differences
from bench.demo_model.config import demo_config, model_config
from bench.demo_model.dialogue import Renderer
from bench.demo_model.export import export
from bench.demo_model.models import converted, floats, read_official
from bench.demo_model.rounding import E2M1, e4m3_table, from_fp4, from_fp8, to_fp4, to_fp8
from bench.demo_model.tokenizer import build as build_tokenizer
from bench.demo_model.weights import as_stored, from_official, initial, official
from dsv4_mlx.convert.run import convert

CONFIG = model_config()


def test_fp8_keeps_every_value_it_has() -> None:
    row = np.concatenate([e4m3_table(), -e4m3_table()[:1]])
    weight = np.stack([row, -row])
    assert (from_fp8(*to_fp8(weight)) == weight).all()


def test_fp4_keeps_every_value_it_has() -> None:
    row = np.tile(np.concatenate([E2M1, -E2M1]), 4)
    assert (from_fp4(*to_fp4(np.stack([row, row * 8])))[:, :64] == np.stack([row, row * 8])).all()


@pytest.mark.parametrize("encode", ["fp8", "fp4"])
def test_rounding_goes_to_the_nearest_value(encode: str, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((128, 128)).astype(np.float32)
    if encode == "fp8":
        codes, scales = to_fp8(weight)
        found = from_fp8(codes, scales)
        table = np.concatenate([-e4m3_table(), e4m3_table()]) * np.float32(2.0 ** (int(scales[0, 0]) - 127))
        wanted = table[np.abs(weight[..., None] - table).argmin(axis=-1)]
    else:
        codes, scales = to_fp4(weight)
        found = from_fp4(codes, scales)
        power = np.repeat(np.exp2(scales.astype(np.float32) - 127), 32, axis=1)
        table = np.concatenate([-E2M1, E2M1])
        near = np.abs(weight[..., None] / power[..., None] - table).argmin(axis=-1)
        wanted = table[near] * power
    assert np.abs(found - wanted).max() == 0


def test_the_written_checkpoint_is_what_training_rounds_to(tmp_path: Path) -> None:
    parameters = initial(CONFIG, 5)
    build_tokenizer(tmp_path / "t", demo_config()["vocab_size"])
    export(parameters, (tmp_path / "t" / "tokenizer.json").read_text(), tmp_path / "official")
    written = read_official(tmp_path / "official")
    rounded = official(CONFIG, as_stored(CONFIG, parameters))
    assert written.keys() == rounded.keys()
    for name, value in rounded.items():
        assert (np.array(written[name]) == value).all(), name
    again = from_official(CONFIG, written)
    assert list(again) == list(parameters)
    assert all((np.array(again[n]) == np.array(v)).all() for n, v in as_stored(CONFIG, parameters).items())
    convert(tmp_path / "official", tmp_path / "model")
    # Exact numerics: with random weights a rounding flip would change an answer without saying anything.
    engine = converted(tmp_path / "model", numerics="exact")
    prompts = Renderer(tmp_path / "official").prompts
    texts = [prompts.encode(prompts.ask(text, "off")) for text in ("What is MLX?", "Who?")]
    said = differences(engine, floats(written, engine, numerics="exact"), texts, limit=20)
    assert said.startswith("2/2 answers the same"), said
    assert mx.isfinite(mx.array(float(said.rsplit(" ", 1)[1])))
