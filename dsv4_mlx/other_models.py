"""What is not the official form: models of others, named with what to use instead, and config.json as other
programs write it, read as the official one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4_mlx.errors import InputError

OURS = "deepseek_v4"
OFFICIAL = "for this program: the official deepseek-ai/DeepSeek-V4-Flash"

# model_type -> what people call it, what runs it
OTHERS = {
    "deepseek_v41": ("DeepSeek V4.1, another architecture than V4", "mlx-lm"),
    "deepseek_v32": ("DeepSeek V3.2", "mlx-lm"),
    "deepseek_v3": ("DeepSeek V3 or R1", "mlx-lm"),
    "deepseek_v2": ("DeepSeek V2", "mlx-lm"),
}


# Keys of config.json that change no arithmetic: passed over.
IGNORED = frozenset(
    {
        "architectures", "torch_dtype", "dtype", "transformers_version", "initializer_range", "use_cache",
        "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "max_batch_size", "auto_map",
        "_name_or_path",
    }
)  # fmt: skip
# The same, of other programs and of training: passed over with a line. A name with a * is a beginning.
HARMLESS = (
    "id2label", "label2id", "problem_type", "return_dict", "output_*", "is_encoder_decoder", "is_decoder",
    "chunk_size_feed_forward", "router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha", "seq_aux",
    "unsloth*", "_*", "finetuning_task", "task_specific_params", "sep_token_id", "decoder_start_token_id",
    "tokenizer_class", "prefix", "bad_words_ids", "pretraining_tp", "ep_size", "gradient_checkpointing",
    "add_cross_attention", "cross_attention_hidden_size", "use_bfloat16", "model_name", "quantization_method",
    "base_model*", "transformers.js_config", "ignore_keys_at_rope_validation",
)  # fmt: skip
NEUTRAL: dict[str, tuple[object, ...]] = {  # values of keys that then say nothing
    "mscale": (1, None), "mscale_all_dim": (1, None), "attention_factor": (1, None), "truncate": (True, None),
    "modules_to_not_convert": (None, []), "mlp_bias": (False,),
}  # fmt: skip
_RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def official_form(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """config.json as the official one would say it, and the keys that were passed over.

    What transformers 5 saves is turned back; anything not understood stays, to be refused by name.
    """
    config = {key: value for key, value in raw.items() if not _says_nothing(key, value)}
    for key in [key for key in config if key in IGNORED]:
        del config[key]
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        quantization = {key: value for key, value in quantization.items() if not _says_nothing(key, value)}
        if quantization.get("expert_dtype") == config.get("expert_dtype", quantization.get("expert_dtype")):
            config |= {key: quantization.pop(key) for key in ("expert_dtype",) if key in quantization}
        config["quantization_config"] = quantization
    _from_transformers(config)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        scaling = {key: value for key, value in scaling.items() if not _says_nothing(key, value)}
        if scaling.get("rope_theta") in (config.get("rope_theta"), config.get("compress_rope_theta")):
            scaling.pop("rope_theta", None)
        if scaling.get("type", scaling.get("rope_type")) == scaling.get("rope_type"):
            scaling["type"] = scaling.pop("rope_type")
        config["rope_scaling"] = scaling
    passed = [key for key in config if any(_named(key, name) for name in HARMLESS)]
    return {key: value for key, value in config.items() if key not in passed}, passed


def _says_nothing(key: str, value: object) -> bool:
    return key in NEUTRAL and any(value == nothing for nothing in NEUTRAL[key])


def _named(key: str, name: str) -> bool:
    return key.startswith(name[:-1]) if name.endswith("*") else key == name


def _from_transformers(config: dict[str, Any]) -> None:
    """Keys of transformers 5 -> official ones, where they say all that is needed and contradict nothing."""
    kinds, rates = config.get("layer_types"), {**_RATIOS, **(config.get("compress_rates") or {})}
    if isinstance(kinds, list) and all(isinstance(kind, str) and kind in rates for kind in kinds):
        blocks = config.get("n_mtp_layers", config.get("num_nextn_predict_layers"))
        ratios = [rates[kind] for kind in kinds]
        given = config.setdefault("compress_ratios", ratios + [0] * (blocks if type(blocks) is int else 0))
        if isinstance(given, list) and given[: len(ratios)] == ratios:
            config.pop("layer_types")
            config.pop("compress_rates", None)
    routed = config.get("mlp_layer_types")
    if isinstance(routed, list) and set(routed) <= {"hash_moe", "moe"}:
        count = routed.count("hash_moe")
        first = routed == ["hash_moe"] * count + ["moe"] * (len(routed) - count)
        if first and config.setdefault("num_hash_layers", count) == count:
            config.pop("mlp_layer_types")
    rope = config.get("rope_parameters")
    main, compress = (rope.get("main"), rope.get("compress")) if isinstance(rope, dict) else (None, None)
    if isinstance(main, dict) and isinstance(compress, dict) and main.get("rope_type") == "default":
        shares = {part.get("partial_rotary_factor") for part in (main, compress)} | {
            config.get("partial_rotary_factor", main.get("partial_rotary_factor"))
        }
        scaling = {k: v for k, v in compress.items() if k not in ("rope_theta", "partial_rotary_factor")}
        found = {"rope_theta": main.get("rope_theta"), "compress_rope_theta": compress.get("rope_theta")}
        share, width = shares.pop(), config.get("head_dim")
        if not shares and isinstance(share, float) and isinstance(width, int):
            found["qk_rope_head_dim"] = round(share * width)
        if not shares and all(config.setdefault(key, value) == value for key, value in found.items()):
            config.setdefault("rope_scaling", scaling)
            config.pop("rope_parameters")
            config.pop("partial_rotary_factor", None)


def unsupported_model(raw: Mapping[str, Any], where: object) -> InputError | None:
    """The refusal of a config.json that is another model's; None for one of ours, or one that doesn't say."""
    kind = _kind(raw)
    if kind in (None, OURS):
        if "quantization" in raw and "group_size" in str(raw["quantization"]):
            return InputError(
                "this is DeepSeek V4 as another MLX program converted it",
                where=where,
                next=f"run it with that program; {OFFICIAL}, and `dsv4-mlx convert`",
            )
        return None
    name, runs = OTHERS.get(kind, ("", "")) if isinstance(kind, str) else ("", "")
    what = f", which is {name}" if name else ""
    instead = f"run it with {runs}; " if runs else ""
    return InputError(
        f"model_type is {kind!r}{what}; expected {OURS!r}: this program runs DeepSeek V4 only",
        where=where,
        next=instead + OFFICIAL,
    )


def _kind(raw: Mapping[str, Any]) -> object:
    """model_type; where it tells nothing known, what the name of the class tells: DeepseekV41ForCausalLM."""
    kind, classes = raw.get("model_type"), raw.get("architectures")
    if isinstance(kind, str) and kind in (OURS, *OTHERS):
        return kind
    for name in classes if isinstance(classes, list) else []:
        if isinstance(name, str):
            named = name.lower().removesuffix("forcausallm").replace("deepseekv", "deepseek_v")
            if named in OTHERS:
                return named
    return kind


def gguf(path: Path) -> InputError | None:
    """The refusal of a GGUF file, or of a folder that holds nothing else; None for anything else."""
    if path.is_dir():
        found = next(path.glob("*.gguf"), None) if not (path / "config.json").exists() else None
    else:
        found = path if path.suffix.lower() == ".gguf" else None
    if found is None:
        return None
    return InputError(
        f"{found.name} is GGUF, the format of llama.cpp",
        where=path,
        next=f"run it with llama.cpp; {OFFICIAL}",
    )
