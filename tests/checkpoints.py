"""Small checkpoints on the real path: written in the official layout, converted, opened; each once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from oracle import goldens
from oracle.numpy_model import Numerics, NumpyModel
from oracle.official import OfficialCheckpoint

from bench.demo_model.float_tensors import FloatTensors
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.run import convert
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import EXACT, NUMERICS, REFERENCE
from dsv4_mlx.synthetic import cut, release_config, small_config, write_checkpoint
from dsv4_mlx.weights.load import find_model, open_model

Array = NDArray[Any]
BASE = {"expert_dtype": "fp8"}


class Checkpoints:
    """By name: a case of the goldens, "small" (what `demo` builds), or a release with few experts.

    "awkward base" and "wide base" have FP8 experts, whose scales cover parts of blocks, and several blocks.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._models: dict[tuple[str, str], Transformer] = {}
        self._weights: dict[str, dict[str, Array]] = {}

    def config(self, name: str) -> dict[str, Any]:
        if name == "small":
            return small_config()
        if name == "wide base":
            return small_config() | BASE | {"hidden_size": 192, "moe_intermediate_size": 320}
        if name == "awkward base":
            return goldens.load("awkward").config | BASE
        if name in ("flash", "base", "pro", "0731"):
            return cut(release_config(name), experts=4)  # type: ignore[arg-type]
        return goldens.load(name).config

    def parsed(self, name: str) -> ModelConfig:
        return ModelConfig.read(self.official(name))

    def official(self, name: str) -> Path:
        if name in goldens.names():
            return goldens.checkpoint(goldens.load(name), self.cache)
        folder = self.cache / f"{name}-official"
        if not folder.exists():
            write_checkpoint(folder, self.config(name), 0)
        return folder

    def converted(self, name: str) -> Path:
        folder = self.cache / f"{name}-converted"
        if not folder.exists():
            convert(self.official(name), folder)
        return folder

    def model(self, name: str, numerics: str = "exact") -> Transformer:
        key = name, numerics
        if key not in self._models:
            stored = find_model(self.converted(name))
            self._models[key] = open_model(stored, REFERENCE, NUMERICS[numerics]).model
        return self._models[key]

    def weights(self, name: str) -> dict[str, Array]:
        """Every tensor as numbers, decoded by the oracle's reader."""
        if name not in self._weights:
            source = OfficialCheckpoint(self.official(name))
            self._weights[name] = {key: source[key] for key in source}
        return self._weights[name]

    def numpy_model(self, name: str, numerics: Numerics = "exact") -> NumpyModel:
        return NumpyModel(self.config(name), self.weights(name), numerics)

    def float_model(self, name: str) -> Transformer:
        """The same weights as plain floats, without files: what training uses."""
        source = FloatTensors({key: mx.array(value) for key, value in self.weights(name).items()})
        model = Transformer(parse_config_of(self.config(name)), source, REFERENCE, EXACT)
        source.finish()
        return model


def parse_config_of(raw: dict[str, Any]) -> ModelConfig:
    return parse_config(json.dumps(raw), "the config of a test")


def run(
    model: Transformer,
    tokens: Sequence[int] | Array,
    cuts: Iterable[int] = (),
    state: ModelState | None = None,
) -> Array:
    """Logits float32 [T, V] of `tokens`, fed in pieces that end at each of `cuts` and at the end."""
    ids = [int(token) for token in tokens]
    state = model.new_state() if state is None else state
    rows, start = [], 0
    for end in [*sorted({c for c in cuts if 0 < c < len(ids)}), len(ids)]:
        logits = model(mx.array([ids[start:end]], mx.int32), state)
        mx.eval(logits, *state.arrays())
        rows.append(np.array(logits[0]))
        start = end
    return np.concatenate(rows)


def decode(model: Transformer, tokens: Sequence[int] | Array, split: int) -> Array:
    """As `run`, with everything after `split` fed one by one."""
    return run(model, tokens, range(split, len(tokens)))


def state_bits(state: ModelState) -> list[Array]:
    """Every array of a state, for comparison bit by bit."""
    return [np.array(a.view(mx.uint32) if a.dtype == mx.float32 else a) for a in state.arrays()]


def same_bits(left: list[Array], right: list[Array]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
