"""The model's shape, read strictly from the official `config.json`.

A key that is missing, misspelt or has a value this program can't compute is an error: a default taken in
silence would change the arithmetic.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv4_mlx.errors import Dsv4Warning, InputError
from dsv4_mlx.other_models import official_form, unsupported_model

Checkpoint = Literal["april", "0731"]
ExpertFormat = Literal["fp4", "fp8"]

DRAFTER = frozenset(
    {"dspark_block_size", "dspark_markov_rank", "dspark_noise_token_id", "dspark_target_layer_ids"}
)

# key -> the only value whose arithmetic is implemented
FIXED: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}

# official key -> field of ModelConfig
INTEGERS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "head_dim": "head_dim",
    "qk_rope_head_dim": "rope_dim",
    "q_lora_rank": "q_rank",
    "o_groups": "o_groups",
    "o_lora_rank": "o_rank",
    "sliding_window": "window",
    "index_n_heads": "index_heads",
    "index_head_dim": "index_dim",
    "index_topk": "index_topk",
    "hc_mult": "streams",
    "hc_sinkhorn_iters": "sinkhorn_iterations",
    "n_routed_experts": "experts",
    "num_experts_per_tok": "experts_per_token",
    "moe_intermediate_size": "expert_width",
    "num_hash_layers": "hash_layers",
    "num_nextn_predict_layers": "mtp_layers",
    "max_position_embeddings": "max_context",
}
FLOATS = {
    "hc_eps": "hc_eps",
    "rms_norm_eps": "norm_eps",
    "routed_scaling_factor": "routed_scale",
    "swiglu_limit": "swiglu_limit",
    "rope_theta": "rope_theta",
    "compress_rope_theta": "compress_rope_theta",
}
LARGEST = {  # far above every release: a damaged number would cost hours or all memory before it shows
    "max_position_embeddings": 2**31 - 1, "original_max_position_embeddings": 2**31 - 1, "vocab_size": 2**24,
    "num_hidden_layers": 512, "n_routed_experts": 4096, "hc_mult": 64, "hc_sinkhorn_iters": 1000,
}  # fmt: skip
LARGEST_OTHER = 2**20
STRUCTURED = ("compress_ratios", "rope_scaling", "quantization_config")
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
}
OPTIONAL = frozenset({"n_mtp_layers", "expert_dtype"})
EXPERT_FORMATS: tuple[ExpertFormat, ...] = ("fp4", "fp8")


@dataclass(frozen=True)
class LayerKind:
    """What a layer attends to besides its window of raw rows, and all that follows from it."""

    name: Literal["window", "csa", "hca"]
    ratio: int  # tokens per compressed row; 0: no compressed rows
    indexed: bool = False  # an indexer chooses among the rows; a row pools the group before its own too

    @property
    def halves(self) -> int:
        """Groups of tokens that a row pools, each with its own projection: 2 where they overlap."""
        return 1 + self.indexed


WINDOW = LayerKind("window", 0)
CSA = LayerKind("csa", 4, indexed=True)
HCA = LayerKind("hca", 128)
KINDS = {kind.ratio: kind for kind in (WINDOW, CSA, HCA)}  # by the number that config.json has for them


@dataclass(frozen=True)
class Yarn:
    """YaRN frequency scaling; applied on layers with compression only, with no factor on the scores."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class Drafter:
    """The DSpark drafter of the 0731 release: blocks `mtp.0` .. that share the trunk's embedding and head."""

    blocks: int  # one per layer that it reads
    block_size: int  # tokens drafted at once
    noise_token: int
    target_layers: tuple[int, ...]  # trunk layers whose outputs it reads
    markov_rank: int


@dataclass(frozen=True)
class ModelConfig:
    """One frozen value holding every number the forward pass depends on. Sizes are in elements."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    head_dim: int
    rope_dim: int
    q_rank: int
    o_groups: int
    o_rank: int
    window: int
    index_heads: int
    index_dim: int
    index_topk: int
    streams: int
    sinkhorn_iterations: int
    experts: int
    experts_per_token: int
    expert_width: int
    hash_layers: int
    mtp_layers: int
    max_context: int
    hc_eps: float
    norm_eps: float
    routed_scale: float
    swiglu_limit: float
    rope_theta: float
    compress_rope_theta: float
    yarn: Yarn
    kinds: tuple[LayerKind, ...]  # one per trunk layer
    checkpoint: Checkpoint
    drafter: Drafter | None = None  # 0731 only; its blocks take the place of the MTP block
    expert_format: ExpertFormat | None = None  # of the routed experts; None where config.json doesn't say

    @property
    def extra_blocks(self) -> int:
        """Blocks stored after the trunk as `mtp.N`: the MTP block, or the drafter's."""
        return self.mtp_layers if self.drafter is None else self.drafter.blocks

    @property
    def draft_blocks(self) -> int:
        """Blocks after the trunk that the model computes: the MTP block. The drafter is stored, not run."""
        return self.mtp_layers if self.drafter is None else 0

    @property
    def nope_dim(self) -> int:
        """Channels of a head that carry no rotation."""
        return self.head_dim - self.rope_dim

    @property
    def kv_block(self) -> int:
        """Channels that share one scale in the Q8 round trip of key/value rows (64 in every release)."""
        return math.gcd(self.nope_dim, 64)

    def kind(self, layer: int) -> LayerKind:
        """What `layer` attends to; blocks after the trunk (MTP) see their window only."""
        return self.kinds[layer] if layer < self.layers else WINDOW

    def hashed(self, layer: int) -> bool:
        """Whether the layer's experts come from the token id instead of the router's scores."""
        return layer < self.hash_layers

    @staticmethod
    def read(folder: Path) -> ModelConfig:
        """Read `folder/config.json`. Raises InputError."""
        path = folder / "config.json"
        if path.is_fifo():  # reading it would wait for ever
            raise InputError("config.json is a pipe, expected a file", where=path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(
                "there is no config.json", where=folder, next="give the folder of a complete checkpoint"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"config.json can't be read: {error}", where=path) from None
        return parse_config(text, path)


def parse_config(text: str, where: object) -> ModelConfig:
    """`config.json` text -> ModelConfig. Raises InputError that names the key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InputError("config.json has a key twice", where=where, next="download the file again")
        return found

    try:
        raw = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a plain ValueError
        raise InputError(
            f"config.json is not JSON: {error}", where=where, next="download the file again"
        ) from None
    if not isinstance(raw, dict):
        raise InputError(f"config.json holds a {type(raw).__name__}, expected an object", where=where)
    return _Reader(raw, where).config()


class _Reader:
    def __init__(self, raw: dict[str, Any], where: object) -> None:
        self.raw = raw
        self.where = where

    def fail(self, message: str) -> InputError:
        return InputError(message, where=self.where, next="use the config.json of the official checkpoint")

    def config(self) -> ModelConfig:
        known = self.raw.get("model_type") == FIXED["model_type"] and "quantization" not in self.raw
        if not known and (other := unsupported_model(self.raw, self.where)) is not None:
            raise other
        self.raw, passed = official_form(self.raw)
        if passed:
            warnings.warn(
                f"config.json has keys without effect: {', '.join(passed)}", Dsv4Warning, stacklevel=1
            )
        self.check_keys()
        for key, only in FIXED.items():
            if self.raw[key] != only or isinstance(self.raw[key], bool) != isinstance(only, bool):
                raise self.fail(
                    f"{key} is {self.raw[key]!r}, expected {only!r}: no other value is implemented"
                )
        values: dict[str, Any] = {}
        for key, name in INTEGERS.items():
            values[name] = self.integer(self.raw, key)
        for key, name in FLOATS.items():
            values[name] = self.number(self.raw, key)
        self.check_quantization()
        checkpoint: Checkpoint = "0731" if "dspark_block_size" in self.raw else "april"
        config = ModelConfig(
            **values,
            yarn=self.yarn(),
            kinds=self.kinds(values["layers"], values["mtp_layers"], checkpoint),
            checkpoint=checkpoint,
            drafter=self.drafter(values["layers"]) if checkpoint == "0731" else None,
            expert_format=self.expert_format(),
        )
        self.check_shapes(config)
        return config

    def check_keys(self) -> None:
        known = {*INTEGERS, *FLOATS, *FIXED, *STRUCTURED}
        if self.raw.keys() & DRAFTER:
            known |= DRAFTER  # all of them or none
        missing = sorted(known - self.raw.keys())
        unknown = sorted(self.raw.keys() - known - OPTIONAL)
        if not missing and not unknown:
            return
        parts = ["missing " + ", ".join(missing)] if missing else []
        for key in unknown:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            parts.append(f"unknown {key}" + (f" (did you mean {near[0]}?)" if near else ""))
        raise InputError(
            "config.json has keys that may change the arithmetic: " + "; ".join(parts),
            where=self.where,
            next="use the official config.json, or a newer dsv4-mlx; a key without effect may be taken out",
        )

    def integer(self, source: dict[str, Any], key: str, lowest: int = 0) -> int:
        value = source[key]
        most = LARGEST.get(key, LARGEST_OTHER)
        if type(value) is float and value.is_integer():  # 1048576.0
            value = int(value)
        if type(value) is not int or not lowest <= value <= most:
            raise self.fail(f"{key} is {value!r}, expected a whole number from {lowest} to {most}")
        return value

    def number(self, source: dict[str, Any], key: str) -> float:
        value = source[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(f"{key} is {value!r}, expected a number")
        if not 1e-37 <= value <= 1e37:  # what float32 holds
            raise self.fail(f"{key} is {value!r}, expected a positive number from 1e-37 to 1e37")
        return float(value)

    def yarn(self) -> Yarn:
        raw = self.raw["rope_scaling"]
        expected = {"type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow"}
        if not isinstance(raw, dict) or raw.keys() != expected or raw["type"] != "yarn":
            raise self.fail(f"rope_scaling is {raw!r}, expected type yarn with exactly {sorted(expected)}")
        return Yarn(
            self.number(raw, "factor"),
            self.integer(raw, "original_max_position_embeddings", 1),
            self.number(raw, "beta_fast"),
            self.number(raw, "beta_slow"),
        )

    def kinds(self, layers: int, mtp_layers: int, checkpoint: Checkpoint) -> tuple[LayerKind, ...]:
        raw = self.raw["compress_ratios"]
        if not isinstance(raw, list) or any(type(r) is not int or r not in KINDS for r in raw):
            raise self.fail(f"compress_ratios is {raw!r}, expected a list of 0, 4 and 128")
        extra = len(raw) - layers
        allowed = {mtp_layers} if checkpoint == "april" else {mtp_layers, 3}
        if extra not in allowed or any(raw[layers:]):
            raise self.fail(
                f"compress_ratios has {len(raw)} entries ending in {raw[layers:]}, expected {layers} for the "
                f"layers and a 0 for each block after them"
            )
        return tuple(KINDS[ratio] for ratio in raw[:layers])

    def expert_format(self) -> ExpertFormat | None:
        if "expert_dtype" not in self.raw:
            return None
        found = self.raw["expert_dtype"]
        for known in EXPERT_FORMATS:
            if found == known:
                return known
        raise self.fail(f"expert_dtype is {found!r}, expected one of {', '.join(EXPERT_FORMATS)}")

    def drafter(self, layers: int) -> Drafter:
        targets = self.raw["dspark_target_layer_ids"]
        known = isinstance(targets, list) and all(type(t) is int and 0 <= t < layers for t in targets)
        if not known or not targets:
            raise self.fail(f"dspark_target_layer_ids is {targets!r}, expected layers below {layers}")
        blocks = len(targets)
        if self.raw.get("n_mtp_layers", blocks) != blocks:
            raise self.fail(
                f"n_mtp_layers is {self.raw['n_mtp_layers']!r}, expected {blocks}, one per target layer"
            )
        return Drafter(
            blocks,
            self.integer(self.raw, "dspark_block_size", 1),
            self.integer(self.raw, "dspark_noise_token_id"),
            tuple(targets),
            self.integer(self.raw, "dspark_markov_rank", 1),
        )

    def check_quantization(self) -> None:
        raw = self.raw["quantization_config"]
        if raw != QUANTIZATION:
            raise self.fail(f"quantization_config is {raw!r}, expected {QUANTIZATION!r}")

    def check_shapes(self, c: ModelConfig) -> None:
        for name in (
            "vocab_size", "hidden_size", "layers", "heads", "head_dim", "rope_dim", "q_rank", "o_groups",
            "o_rank", "window", "index_heads", "index_dim", "index_topk", "streams", "sinkhorn_iterations",
            "experts", "experts_per_token", "expert_width", "max_context",
        ):  # fmt: skip
            if getattr(c, name) < 1:
                raise self.fail(f"{name} is {getattr(c, name)}, expected at least 1")
        self.require(
            c.rope_dim % 2 == 0 and c.rope_dim < c.head_dim, "qk_rope_head_dim is even, below head_dim"
        )
        self.require(c.rope_dim <= c.index_dim, "qk_rope_head_dim is at most index_head_dim")
        self.require(
            c.rope_theta > 1 and c.compress_rope_theta > 1, "rope_theta, compress_rope_theta are above 1"
        )
        self.require(c.heads % c.o_groups == 0, "num_attention_heads divides into o_groups")
        self.require(c.experts_per_token <= c.experts, "num_experts_per_tok is at most n_routed_experts")
        self.require(c.hash_layers <= c.layers, "num_hash_layers is at most num_hidden_layers")
        self.require(c.mtp_layers <= 1, "num_nextn_predict_layers is 0 or 1")
        self.require(
            c.index_dim & (c.index_dim - 1) == 0 and c.index_dim >= 32, "index_head_dim is 32, 64, ..."
        )
        for name, width in (
            ("hidden_size", c.hidden_size),
            ("q_lora_rank", c.q_rank),
            ("moe_intermediate_size", c.expert_width),
            ("o_groups x o_lora_rank", c.o_groups * c.o_rank),
            ("heads per group x head_dim", c.heads // c.o_groups * c.head_dim),
        ):
            self.require(
                width % 32 == 0, f"{name} is a multiple of 32 (found {width}): a scale covers 32 weights"
            )

    def require(self, true: bool, rule: str) -> None:
        if not true:
            raise self.fail(f"config.json contradicts itself; it must hold that {rule}")
