"""Both engines behind the same two calls: `start` a sequence, `step` by a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from bench.count.ours import named, slots
from bench.count.trace import Graph, trace
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.ops.table import EXACT, REFERENCE
from dsv4_mlx.weights.load import find_model, open_model

Logits = npt.NDArray[np.float32]


class Ours:
    """The reference path, numerics `exact`: the peer simulates no quantisation either."""

    def __init__(self, folder: Path) -> None:
        self.config = ModelConfig.read(folder)
        self.model = open_model(find_model(folder), REFERENCE, EXACT).model
        mx.eval([array for _, array in named(self.model)], [slot.array for slot in slots(self.model)])

    def start(self, tokens: npt.NDArray[np.int64]) -> Logits:
        self.state = self.model.new_state()
        return self._run(mx.array(tokens[None]))

    def step(self, token: int) -> Logits:
        return self._run(mx.array([[token]]))

    def _run(self, tokens: mx.array) -> Logits:
        logits = self.model(tokens, self.state, last=True)
        mx.eval(logits, self.state.arrays())
        rows: Logits = np.asarray(logits, np.float32)[0, -1]
        return rows

    def graph(self, before: int, rows: int) -> Graph:
        """Traced with weights as arguments: how they are stored is part of the graph."""
        places = list(slots(self.model))
        state = self.model.new_state()
        state.reserve(before + rows)
        state.length = state.reached = before
        mx.eval(state.arrays())

        def step(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
            for place, array in zip(places, arrays, strict=True):
                place.put(array)
            return [self.model(tokens, state, last=True), *state.arrays()]

        graph = trace(step, [mx.zeros((1, rows), mx.int32), *(place.array for place in places)])
        for place in places:
            place.put(place.array)
        return graph


class Theirs:
    """mlx-vlm through its own loader's renaming and repacking."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from mlx.nn.layers.quantized import quantize
        from mlx_vlm.models.deepseek_v4.config import ModelConfig as PeerConfig
        from mlx_vlm.models.deepseek_v4.language import LanguageModel

        raw: dict[str, mx.array] = {}
        for file in sorted(folder.glob("*.safetensors")):
            raw.update(mx.load(str(file)))  # type: ignore[arg-type]
        text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = text["num_hidden_layers"]
        text["compress_ratios"] = text["compress_ratios"][:layers]
        self.model = LanguageModel(PeerConfig.from_dict(text))
        weights = self.model.sanitize(raw)
        formats = self.model.quant_predicate

        def stored(path: str, module: Any) -> Any:
            return formats(path, module) if f"{path}.scales" in weights else False

        quantize(self.model, class_predicate=stored)
        floats = (mx.bfloat16, mx.float16)
        ready = {n: a.astype(mx.float32) if a.dtype in floats else a for n, a in weights.items()}
        self.model.load_weights(list(ready.items()))
        self.model.eval()
        mx.eval(self.model.parameters())

    def start(self, tokens: npt.NDArray[np.int64]) -> Logits:
        self.cache = self.model.make_cache()
        return self._run(mx.array(tokens[None]))

    def step(self, token: int) -> Logits:
        return self._run(mx.array([[token]]))

    def _run(self, tokens: mx.array) -> Logits:
        logits = self.model(tokens, cache=self.cache).logits[:, -1]
        mx.eval(logits, [cache.state for cache in self.cache])
        rows: Logits = np.asarray(logits.astype(mx.float32), np.float32)[0]
        return rows

    def graph(self, before: int, rows: int) -> Graph:
        """After a real prefill of `before` tokens, so that the cache has its shapes."""
        if before:
            self.start(np.zeros(before, np.int64))
        else:
            self.cache = self.model.make_cache()
        names, weights = zip(*named(self.model), strict=True)

        def step(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
            self.model.update(tree_unflatten(list(zip(names, arrays, strict=True))))
            logits = self.model(tokens, cache=self.cache).logits
            states = [array for _, array in tree_flatten([cache.state for cache in self.cache])]
            return [logits, *(array for array in states if isinstance(array, mx.array))]

        graph = trace(step, [mx.zeros((1, rows), mx.int32), *weights])
        self.model.update(tree_unflatten(list(zip(names, weights, strict=True))))
        return graph
