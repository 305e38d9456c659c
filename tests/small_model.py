"""Models of random plain floats, made in milliseconds: every kind of layer, nothing on disk."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np

from bench.demo_model.float_tensors import FloatTensors
from dsv4_mlx.checkpoint.inventory import Weight, inventory
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.engine.session import Session
from dsv4_mlx.model.state import GROWTH
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import EXACT, REFERENCE, Ops
from dsv4_mlx.synthetic import small_config
from dsv4_mlx.tokenizer.template import Markers

MARKERS = Markers(end=1, user=4, assistant=5, think=6, end_think=7)

# One layer of each kind (window, CSA, HCA), one of them hashed, at the least widths: a few ms a step.
TINY: dict[str, Any] = {
    "compress_ratios": [0, 4, 128],
    "num_hidden_layers": 3,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 0,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 2,
    "head_dim": 32,
    "hidden_size": 32,
    "index_head_dim": 32,
    "index_n_heads": 8,
    "index_topk": 8,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "o_groups": 1,
    "o_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "sliding_window": 32,
    "vocab_size": 384,
}


def tiny_config(**changes: Any) -> ModelConfig:
    """The official config of the small checkpoint, made smaller still."""
    return parse_config(json.dumps({**small_config(), **TINY, **changes}), "the tiny config")


def tiny_model(seed: int = 0, ops: Ops = REFERENCE, **changes: Any) -> Transformer:
    """A model of tiny_config(**changes) with float32 weights, evaluated, exact numerics."""
    config = tiny_config(**changes)
    rng = np.random.default_rng(seed)
    source = FloatTensors(
        {weight.name: _values(weight, config, rng) for weight in inventory(config).weights()}
    )
    model = Transformer(config, source, ops, EXACT)
    source.finish()
    mx.eval(model.parameters())  # type: ignore[no-untyped-call]
    return model


def new_session(model: Transformer, context: int = 4096, growth: int = GROWTH) -> Session:
    """An empty session of `model`; ids 1, 5, 6 and 7 are its markers."""
    return Session(model, context, MARKERS, growth)


def token_ids(rng: np.random.Generator, count: int, vocabulary: int = TINY["vocab_size"]) -> list[int]:
    """Random ids that are no markers."""
    return [int(token) for token in rng.integers(8, vocabulary, count)]


def _values(weight: Weight, config: ModelConfig, rng: np.random.Generator) -> mx.array:
    if weight.name.endswith("tid2eid"):
        rows = [rng.permutation(config.experts)[: weight.shape[1]] for _ in range(weight.shape[0])]
        return mx.array(np.array(rows, np.int32))
    values = rng.standard_normal(weight.shape) / np.sqrt(weight.shape[-1])
    if weight.part == "norm":
        values = 1 + 0.1 * values
    if weight.name.startswith(("head.", "embed.")):
        values *= 4  # logits that differ, so that equal tokens mean something
    return mx.array(values.astype(np.float32))
