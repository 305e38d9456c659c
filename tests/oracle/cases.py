"""The small checkpoints that goldens are made of: sizes, seeds and prompts, and why each exists.

Sizes are chosen so that every branch of the model is really taken within a few hundred tokens. Seeds are
chosen so that no discrete choice (index rows, experts) is closer than `MIN_MARGIN`: on a near tie two
correct implementations may differ. `oracle.find_prompts` searches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_MARGIN = 5e-5  # gap at a discrete choice, relative to the largest score of its row

FIXED: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 1.5,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 4096,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
}


@dataclass(frozen=True)
class Prompt:
    """`length` random tokens; the cached run prefills `split` of them and decodes the others one by one."""

    length: int
    split: int
    seed: int

    def tokens(self, vocabulary: int) -> NDArray[np.int64]:
        return np.random.default_rng(self.seed).integers(0, vocabulary, self.length)


@dataclass(frozen=True)
class Case:
    """One checkpoint; `official` is for comparing simulated quantisation, `prompts` have goldens.

    With simulated quantisation a value next to a rounding edge falls to either side, depending on the order
    of float32 sums, and everything after it differs. `official` is a prompt on which that stays rare.
    """

    name: str
    purpose: str
    config: dict[str, Any]
    seed: int
    prompts: tuple[Prompt, ...]
    official: Prompt


def config(ratios: list[int], yarn: tuple[int, int], **sizes: Any) -> dict[str, Any]:
    """A whole config.json: `ratios` of the trunk layers, `yarn` as (factor, original positions)."""
    return {
        **FIXED,
        "num_hidden_layers": len(ratios),
        "compress_ratios": [*ratios, 0],
        "rope_scaling": {
            "type": "yarn",
            "factor": yarn[0],
            "original_max_position_embeddings": yarn[1],
            "beta_fast": 32,
            "beta_slow": 1,
        },
        **sizes,
    }


TOPK = Case(
    "topk",
    "The indexer selects: 8 rows of up to 75, on three layers, with a short window.",
    config(
        [0, 4, 128, 4, 4],
        yarn=(16, 64),
        vocab_size=512,
        hidden_size=128,
        num_attention_heads=8,
        head_dim=64,
        qk_rope_head_dim=16,
        q_lora_rank=64,
        o_groups=2,
        o_lora_rank=32,
        sliding_window=16,
        index_n_heads=16,
        index_head_dim=32,
        index_topk=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        num_hash_layers=2,
        swiglu_limit=4.0,
    ),
    seed=1,
    prompts=(Prompt(301, 97, 2), Prompt(46, 1, 13)),
    official=Prompt(301, 301, 33),
)

AWKWARD = Case(
    "awkward",
    "No size is a power of two or a multiple of 128; odd experts, groups, vocabulary and lengths; constants "
    "unlike the released ones, so large that a forgotten epsilon or one Sinkhorn pass less is seen.",
    config(
        [0, 128, 4, 128, 4],
        yarn=(4, 128),
        vocab_size=401,
        hidden_size=160,
        num_attention_heads=6,
        head_dim=96,
        qk_rope_head_dim=24,
        q_lora_rank=96,
        o_groups=3,
        o_lora_rank=32,
        sliding_window=21,
        index_n_heads=13,
        index_head_dim=32,
        index_topk=11,
        n_routed_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=96,
        num_hash_layers=3,
        swiglu_limit=3.5,
        routed_scaling_factor=2.5,
        hc_eps=2e-3,
        rms_norm_eps=1e-3,
        hc_sinkhorn_iters=6,
    ),
    seed=1,
    prompts=(Prompt(263, 131, 6), Prompt(1, 1, 2), Prompt(5, 2, 3)),
    official=Prompt(263, 263, 26),
)

WINDOWS = Case(
    "windows",
    "Four closed windows of 128 tokens; every CSA row fits, so nothing is left out by the indexer.",
    config(
        [0, 128, 4, 128],
        yarn=(16, 65536),
        vocab_size=384,
        hidden_size=128,
        num_attention_heads=8,
        head_dim=64,
        qk_rope_head_dim=32,
        q_lora_rank=64,
        o_groups=4,
        o_lora_rank=32,
        sliding_window=128,
        index_n_heads=16,
        index_head_dim=64,
        index_topk=160,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        num_hash_layers=1,
        swiglu_limit=4.0,
    ),
    seed=1,
    prompts=(Prompt(523, 384, 14), Prompt(130, 127, 11)),
    official=Prompt(400, 400, 31),
)

HEADS = Case(
    "heads",
    "The released attention geometry: 512 channels with 64 rotated, window 128, 64 index heads of 128.",
    config(
        [0, 4, 128, 4],
        yarn=(16, 65536),
        vocab_size=352,
        hidden_size=256,
        num_attention_heads=16,
        head_dim=512,
        qk_rope_head_dim=64,
        q_lora_rank=128,
        o_groups=8,
        o_lora_rank=64,
        sliding_window=128,
        index_n_heads=64,
        index_head_dim=128,
        index_topk=16,
        n_routed_experts=16,
        num_experts_per_tok=6,
        moe_intermediate_size=128,
        num_hash_layers=1,
        swiglu_limit=4.0,
    ),
    seed=1,
    prompts=(Prompt(275, 129, 1), Prompt(67, 3, 5)),
    official=Prompt(88, 88, 76),
)

FP8 = Case(
    "fp8",
    "Experts of FP8 with scales as floats: several blocks each way, the last ones partial.",
    config(
        [0, 4, 128, 4],
        yarn=(16, 64),
        vocab_size=384,
        hidden_size=320,
        num_attention_heads=8,
        head_dim=64,
        qk_rope_head_dim=16,
        q_lora_rank=64,
        o_groups=2,
        o_lora_rank=32,
        sliding_window=32,
        index_n_heads=16,
        index_head_dim=32,
        index_topk=16,
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=192,
        num_hash_layers=1,
        swiglu_limit=4.0,
        expert_dtype="fp8",
    ),
    seed=1,
    prompts=(Prompt(213, 97, 7), Prompt(40, 3, 23)),
    official=Prompt(150, 150, 10),
)

CASES = (TOPK, AWKWARD, WINDOWS, HEADS, FP8)
