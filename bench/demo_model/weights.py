"""The trained parameters: arrays by official name, with the experts of a block as two stacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from bench.demo_model.float_tensors import FloatExperts, FloatTensors
from bench.demo_model.rounding import rounded
from dsv4_mlx.checkpoint.inventory import Weight, inventory
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.tensors import ExpertProduct

Floats = npt.NDArray[np.float32]
Parameters = dict[str, mx.array]

SMALL = {"wo_b": 0.5, "w2": 0.5}  # sublayer outputs start below the size of the stream


class TrainingTensors(FloatTensors):
    """FloatTensors whose experts are stacks: `BLOCK.experts.gate_up` [E, 2 I, D] and `.down` [E, D, I]."""

    def experts(self, block: str, product: ExpertProduct) -> FloatExperts:
        return FloatExperts(
            self._take(f"{block}.experts.gate_up", None),
            self._take(f"{block}.experts.down", None),
            product,
        )


def hash_table(config: ModelConfig, layer: int) -> npt.NDArray[np.int64]:
    """tid2eid of a hash layer: distinct experts per token, the same in every run."""
    random = np.random.default_rng(1000 + layer)
    draws = random.random((config.vocab_size, config.experts))
    return np.argsort(draws, axis=1)[:, : config.experts_per_token].astype(np.int64)


def initial(config: ModelConfig, seed: int) -> Parameters:
    random = np.random.default_rng(seed)
    out: dict[str, Floats] = {}
    blocks = inventory(config)
    for weight in [blocks.embed, *blocks.head, *(w for b in blocks.blocks for w in b.weights)]:
        if not weight.name.endswith("tid2eid"):
            out[weight.name] = _initial(config, weight, random)
    for block in blocks.blocks:
        stacks = [[_initial(config, w, random) for w in expert] for expert in block.experts]
        gate_up = np.stack([np.concatenate([gate, up]) for gate, up, _ in stacks])
        out[f"{block.prefix}.experts.gate_up"] = gate_up
        out[f"{block.prefix}.experts.down"] = np.stack([down for _, _, down in stacks])
    return {name: mx.array(value) for name, value in out.items()}


def _initial(c: ModelConfig, weight: Weight, random: np.random.Generator) -> Floats:
    name, shape = weight.name.removesuffix(".weight").rsplit(".", 1)[-1], weight.shape
    normal = random.standard_normal(shape).astype(np.float32)
    if weight.part == "norm":
        return np.ones(shape, np.float32)
    if weight.part == "sink" or name in ("bias", "ape"):
        return np.zeros(shape, np.float32)
    if weight.part == "hyper":
        if name.endswith("_fn"):
            return normal * np.float32(0.01)
        if name.endswith("_scale"):
            return np.ones(shape, np.float32)
        even = np.full(c.streams, -math.log(c.streams - 1))
        rest = np.concatenate([np.zeros(c.streams), 3 * np.eye(c.streams).reshape(-1)])
        centre = even if "head" in name else np.concatenate([even, rest])
        return np.asarray(centre + 0.3 * normal, dtype=np.float32)
    if weight.part == "embedding":
        return np.asarray(normal * np.float32(0.5))
    gain = SMALL.get(name, 1.0) * (0.5 if weight.part == "head" else 1.0)
    return np.asarray(normal * np.float32(gain / math.sqrt(shape[-1])))


def tensors(config: ModelConfig, parameters: Mapping[str, mx.array]) -> TrainingTensors:
    """The source a Transformer is built from."""
    tables = {
        f"layers.{i}.ffn.gate.tid2eid": mx.array(hash_table(config, i).astype(np.int32))
        for i in range(config.hash_layers)
    }
    return TrainingTensors({**parameters, **tables})


def official(config: ModelConfig, parameters: Mapping[str, mx.array]) -> dict[str, npt.NDArray[np.generic]]:
    """Every official tensor's logical values by name (experts one by one, hash tables included)."""
    out: dict[str, npt.NDArray[np.generic]] = {}
    for name, value in parameters.items():
        if ".experts." not in name:
            out[name] = np.array(value)
    for block in inventory(config).blocks:
        gate_up = np.array(parameters[f"{block.prefix}.experts.gate_up"])
        down = np.array(parameters[f"{block.prefix}.experts.down"])
        inner = config.expert_width
        for i, (w1, w3, w2) in enumerate(block.experts):
            out[w1.name], out[w3.name], out[w2.name] = gate_up[i, :inner], gate_up[i, inner:], down[i]
    for i in range(config.hash_layers):
        out[f"layers.{i}.ffn.gate.tid2eid"] = hash_table(config, i)
    return out


def from_official(config: ModelConfig, values: Mapping[str, mx.array]) -> Parameters:
    """The parameters of a checkpoint that was read from the official layout."""
    blocks = inventory(config)
    out = {}
    for weight in [blocks.embed, *blocks.head, *(w for b in blocks.blocks for w in b.weights)]:
        if not weight.name.endswith("tid2eid"):
            out[weight.name] = values[weight.name]
    for block in blocks.blocks:
        stacks = [[values[w.name] for w in expert] for expert in block.experts]
        out[f"{block.prefix}.experts.gate_up"] = mx.stack([mx.concatenate([g, u]) for g, u, _ in stacks])
        out[f"{block.prefix}.experts.down"] = mx.stack([down for _, _, down in stacks])
    return out


def as_stored(config: ModelConfig, parameters: Parameters) -> Parameters:
    """The parameters as the official formats keep them. A gradient taken here and applied to the originals
    is the straight-through estimate."""
    blocks = inventory(config)
    kept = dict(parameters)
    for weight in [blocks.embed, *blocks.head, *(w for b in blocks.blocks for w in b.weights)]:
        if weight.name in kept and (weight.form != "raw" or weight.dtypes[0] == "BF16"):
            kept[weight.name] = mx.array(rounded(weight, np.array(kept[weight.name])))
    for block in blocks.blocks:
        form = block.experts[0][0]
        for part in ("gate_up", "down"):
            name = f"{block.prefix}.experts.{part}"
            stack = np.array(kept[name])
            kept[name] = mx.array(rounded(form, stack.reshape(-1, stack.shape[-1])).reshape(stack.shape))
    return kept


def load_arrays(path: Path) -> Parameters:
    return cast(Parameters, mx.load(str(path), format="safetensors"))
