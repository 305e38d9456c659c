"""Configs of the releases, true or shrunk, and of the small default checkpoint."""

from __future__ import annotations

import copy
from typing import Any, Literal

from dsv4_mlx.errors import UsageError

Release = Literal["flash", "base", "pro", "0731"]

FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "compress_ratios": [0, 0, *([4, 128] * 20), 4, 0],
    "compress_rope_theta": 160000,
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "num_hidden_layers": 43,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "vocab_size": 129280,
}

BASE_CHANGES: dict[str, Any] = {"expert_dtype": "fp8"}

PRO_CHANGES: dict[str, Any] = {
    "compress_ratios": [128, 128, *([4, 128] * 29), 4, 0],
    "hidden_size": 7168,
    "index_topk": 1024,
    "moe_intermediate_size": 3072,
    "n_routed_experts": 384,
    "num_attention_heads": 128,
    "num_hidden_layers": 61,
    "o_groups": 16,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 2.5,
}

CHANGES_0731: dict[str, Any] = {
    "compress_ratios": [0, 0, *([4, 128] * 20), 4, 0, 0, 0],
    "dspark_block_size": 5,
    "dspark_markov_rank": 256,
    "dspark_noise_token_id": 128799,
    "dspark_target_layer_ids": [40, 41, 42],
    "expert_dtype": "fp4",
    "n_mtp_layers": 3,
}

# Widths at which a whole checkpoint is a few megabytes. 16 index heads: with fewer, index scores tie at 0.
SMALL_WIDTHS: dict[str, Any] = {
    "head_dim": 64,
    "hidden_size": 128,
    "index_head_dim": 32,
    "index_n_heads": 16,
    "index_topk": 16,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "num_attention_heads": 8,
    "num_experts_per_tok": 3,
    "o_groups": 2,
    "o_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "sliding_window": 32,
    "vocab_size": 640,
}


def release_config(release: Release, *, true_size: bool = False) -> dict[str, Any]:
    """The release's `config.json`; unless `true_size`, its pattern of layers and keys at small widths."""
    changes: dict[Release, dict[str, Any]] = {
        "flash": {}, "base": BASE_CHANGES, "pro": PRO_CHANGES, "0731": CHANGES_0731,
    }  # fmt: skip
    if release not in changes:
        raise UsageError(f"there is no release {release!r}", next=f"choose one of {', '.join(changes)}")
    config = copy.deepcopy({**FLASH, **changes[release]})
    if not true_size:
        config.update(copy.deepcopy(SMALL_WIDTHS))
        if "dspark_markov_rank" in config:
            config |= {"dspark_markov_rank": 32, "dspark_noise_token_id": 3}
    return config


def small_config() -> dict[str, Any]:
    """Seven layers with every ratio, hash and learned routing, an MTP block and a top-k that selects."""
    config = release_config("flash")
    config |= {
        "compress_ratios": [0, 4, 128, 4, 0, 128, 4, 0],
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "num_hash_layers": 2,
        "num_hidden_layers": 7,
    }
    return config


def cut(config: dict[str, Any], layers: int | None = None, experts: int | None = None) -> dict[str, Any]:
    """The same model with fewer layers or experts. Raises UsageError."""
    config = copy.deepcopy(config)
    if layers is not None:
        have = config["num_hidden_layers"]
        if not 1 <= layers <= have:
            raise UsageError(f"--layers is {layers}, expected 1 to {have}, the layers of this config")
        ratios = config["compress_ratios"]
        config["compress_ratios"] = ratios[:layers] + ratios[have:]
        config["num_hidden_layers"] = layers
        config["num_hash_layers"] = min(config["num_hash_layers"], layers)
        if "dspark_target_layer_ids" in config:
            targets = len(config["dspark_target_layer_ids"])
            config["dspark_target_layer_ids"] = [max(0, layers - targets + i) for i in range(targets)]
    if experts is not None:
        least = config["num_experts_per_tok"]
        if experts < least:
            raise UsageError(f"--experts is {experts}, expected at least {least}: each token uses that many")
        config["n_routed_experts"] = experts
    return config
