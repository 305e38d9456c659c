"""The demo model's `config.json`: the whole architecture at widths that two CPU cores can train."""

from __future__ import annotations

import json
from typing import Any

from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.synthetic import release_config

# Two window layers, then CSA, HCA, CSA; hash routing in the first two; an MTP block. A window of 64 holds
# a question and the call that it asks for, which is what makes copying of arguments easy.
CHANGES: dict[str, Any] = {
    "compress_ratios": [0, 0, 4, 128, 4, 0],
    "head_dim": 64,
    "hidden_size": 128,
    "index_head_dim": 32,
    "index_n_heads": 16,
    "index_topk": 16,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hash_layers": 2,
    "num_hidden_layers": 5,
    "o_groups": 2,
    "o_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "sliding_window": 64,
    "vocab_size": 1792,
}


def demo_config() -> dict[str, Any]:
    """The official `config.json` with the demo's sizes."""
    return {**release_config("flash"), **CHANGES}


def model_config() -> ModelConfig:
    return parse_config(json.dumps(demo_config()), "bench/demo_model/config.py")
