"""The official checkpoint as a table: every tensor's name, dtype and shape, computed from the config.

This is the one place that knows the release's layout. The converter checks a checkpoint against it, the
synthetic writer writes it. For the April config it yields 69,187 tensors and 159,609,485,896 bytes, which are
the published figures.

A `Weight` is what the model uses: one matrix or vector, stored as one or two official tensors.

    raw   X                                     dtype and shape as they are
    fp8   X.weight F8_E4M3 [out, in]            X.scale F8_E8M0 [ceil(out/128), ceil(in/128)];
                                                the same powers of two as F32 where experts are FP8
    fp4   X.weight I8 [out, in/2], two E2M1     X.scale F8_E8M0 [out, in/32]
          codes a byte, low nibble = even index
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dsv4_mlx.config import ExpertFormat, LayerKind, ModelConfig

Form = Literal["raw", "fp8", "fp4"]
# The component a weight belongs to: recipes, reports and synthetic values go by it.
Part = Literal[
    "embedding", "head", "attention", "indexer", "compressor", "shared", "experts", "router", "hyper", "norm",
    "sink", "draft",
]  # fmt: skip

FP8_BLOCK = 128  # rows and columns that share an E8M0 scale
FP4_GROUP = 32  # columns that share an E8M0 scale
EXPERT_MATRICES = ("w1", "w3", "w2")  # gate (through SiLU), up, down
AN_EXPERT = "layers.0.ffn.experts.0.w1.weight"  # every checkpoint has it
EXPERT_DTYPES: dict[str, ExpertFormat] = {"I8": "fp4", "F8_E4M3": "fp8"}  # its dtype says how all are stored
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One official tensor. `dtypes` holds more than one where releases are said to differ; first is ours."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtypes[0]]


@dataclass(frozen=True)
class Weight:
    """One weight of the model. `shape` is logical ([out, in] for a matrix); `name` is the official tensor."""

    name: str
    part: Part
    form: Form
    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = ()  # of a raw weight, or of another's scale

    @property
    def scale_name(self) -> str:
        return self.name.removesuffix(".weight") + ".scale"

    def tensors(self) -> tuple[Tensor, ...]:
        """The official tensors that store it: the weight first, then its scale."""
        if self.form == "raw":
            return (Tensor(self.name, self.dtypes, self.shape),)
        rows, columns = self.shape
        if self.form == "fp8":
            scale = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
            codes = Tensor(self.name, ("F8_E4M3",), self.shape)
        else:
            scale = (rows, columns // FP4_GROUP)
            codes = Tensor(self.name, ("I8",), (rows, columns // 2))
        return codes, Tensor(self.scale_name, self.dtypes, scale)


@dataclass(frozen=True)
class BlockTensors:
    """A layer or a block after the trunk. `prefix` is "layers.N" or "mtp.N"."""

    prefix: str
    weights: tuple[Weight, ...]  # all but the routed experts
    experts: tuple[tuple[Weight, Weight, Weight], ...]  # [expert] -> w1, w3, w2

    def all(self) -> Iterator[Weight]:
        yield from self.weights
        for expert in self.experts:
            yield from expert


@dataclass(frozen=True)
class Inventory:
    """Every weight of a checkpoint, in the order of its shards.

    `copies` may be there as well: the trunk's embedding and head once more, for the blocks after it. They
    are left out, as by the release's own converter. V4-Flash-Base is said to have them, V4-Flash hasn't.
    """

    embed: Weight
    layers: tuple[BlockTensors, ...]
    head: tuple[Weight, ...]
    extra: tuple[BlockTensors, ...]
    copies: tuple[Tensor, ...] = ()

    @property
    def blocks(self) -> tuple[BlockTensors, ...]:
        return self.layers + self.extra

    def shards(self) -> list[list[Weight]]:
        """Weights by official shard: embedding, one per layer, head, everything under `mtp`."""
        shards = [[self.embed], *(list(block.all()) for block in self.layers), list(self.head)]
        if self.extra:
            shards.append([weight for block in self.extra for weight in block.all()])
        return shards

    def weights(self) -> Iterator[Weight]:
        for shard in self.shards():
            yield from shard

    def tensors(self) -> Iterator[Tensor]:
        for weight in self.weights():
            yield from weight.tensors()


def inventory(config: ModelConfig) -> Inventory:
    """What a checkpoint with this config holds, no more and no less. Experts are FP4 where it doesn't say."""
    width = config.hidden_size
    return Inventory(
        embed=_bf16("embed.weight", "embedding", config.vocab_size, width),
        layers=tuple(_block(config, f"layers.{i}", i) for i in range(config.layers)),
        head=(
            _bf16("head.weight", "head", config.vocab_size, width),
            _bf16("norm.weight", "norm", width),
            *_hyper_head(config, ""),
        ),
        extra=tuple(_extra_block(config, i) for i in range(config.extra_blocks)),
        copies=tuple(
            Tensor(f"mtp.{i}.{name}.weight", ("BF16", "F32"), (config.vocab_size, width))
            for i in range(config.extra_blocks)
            for name in ("emb.tok_emb", "embed", "head")
        ),
    )


def _block(c: ModelConfig, prefix: str, layer: int) -> BlockTensors:
    width = c.hidden_size
    weights = [
        _bf16(f"{prefix}.attn_norm.weight", "norm", width),
        _bf16(f"{prefix}.ffn_norm.weight", "norm", width),
        *_hyper(c, f"{prefix}.hc_attn"),
        *_hyper(c, f"{prefix}.hc_ffn"),
        *_attention(c, f"{prefix}.attn", c.kind(layer)),
        _bf16(f"{prefix}.ffn.gate.weight", "router", c.experts, width),
    ]
    if layer < c.layers and c.hashed(layer):
        table = (c.vocab_size, c.experts_per_token)
        weights.append(Weight(f"{prefix}.ffn.gate.tid2eid", "router", "raw", table, ("I64",)))
    else:
        weights.append(_f32(f"{prefix}.ffn.gate.bias", "router", c.experts))
    weights.extend(_expert(c, f"{prefix}.ffn.shared_experts", "shared", "fp8"))
    form: Form = c.expert_format or "fp4"
    experts = tuple(_expert(c, f"{prefix}.ffn.experts.{e}", "experts", form) for e in range(c.experts))
    return BlockTensors(prefix, tuple(weights), experts)


def _extra_block(c: ModelConfig, index: int) -> BlockTensors:
    """`mtp.N`: an ordinary window-only block with a learned router, plus what the release adds to it."""
    prefix, width = f"mtp.{index}", c.hidden_size
    block = _block(c, prefix, c.layers + index)
    more: list[Weight] = []
    if c.drafter is None:
        more += [
            _coded(c, f"{prefix}.e_proj.weight", "draft", "fp8", (width, width)),
            _coded(c, f"{prefix}.h_proj.weight", "draft", "fp8", (width, width)),
            *(_bf16(f"{prefix}.{name}.weight", "norm", width) for name in ("enorm", "hnorm", "norm")),
            *_hyper_head(c, f"{prefix}."),
        ]
        return BlockTensors(prefix, block.weights + tuple(more), block.experts)
    if index == 0:
        read = len(c.drafter.target_layers) * width
        more += [
            _coded(c, f"{prefix}.main_proj.weight", "draft", "fp8", (width, read)),
            _bf16(f"{prefix}.main_norm.weight", "norm", width),
        ]
    if index == c.drafter.blocks - 1:
        rank, vocabulary = c.drafter.markov_rank, c.vocab_size
        # Descriptions of the release disagree on the dtype of the two heads; both are carried as they come.
        either = ("BF16", "F32")
        more += [
            _bf16(f"{prefix}.norm.weight", "norm", width),
            *_hyper_head(c, f"{prefix}."),
            Weight(f"{prefix}.markov_head.markov_w1.weight", "draft", "raw", (vocabulary, rank), either),
            Weight(f"{prefix}.markov_head.markov_w2.weight", "draft", "raw", (vocabulary, rank), either),
            Weight(f"{prefix}.confidence_head.proj.weight", "draft", "raw", (1, width + rank), either),
        ]
    return BlockTensors(prefix, block.weights + tuple(more), block.experts)


def _attention(c: ModelConfig, prefix: str, kind: LayerKind) -> list[Weight]:
    def fp8(name: str, rows: int, columns: int) -> Weight:
        return _coded(c, f"{prefix}.{name}.weight", "attention", "fp8", (rows, columns))

    weights = [
        _f32(f"{prefix}.attn_sink", "sink", c.heads),
        fp8("wq_a", c.q_rank, c.hidden_size),
        _bf16(f"{prefix}.q_norm.weight", "norm", c.q_rank),
        fp8("wq_b", c.heads * c.head_dim, c.q_rank),
        fp8("wkv", c.head_dim, c.hidden_size),
        _bf16(f"{prefix}.kv_norm.weight", "norm", c.head_dim),
        fp8("wo_a", c.o_groups * c.o_rank, c.heads // c.o_groups * c.head_dim),
        fp8("wo_b", c.hidden_size, c.o_groups * c.o_rank),
    ]
    if kind.ratio:
        weights += _compressor(c, f"{prefix}.compressor", "compressor", kind, c.head_dim)
    if kind.indexed:
        index = f"{prefix}.indexer"
        weights += [
            _coded(c, f"{index}.wq_b.weight", "indexer", "fp8", (c.index_heads * c.index_dim, c.q_rank)),
            _bf16(f"{index}.weights_proj.weight", "indexer", c.index_heads, c.hidden_size),
            *_compressor(c, f"{index}.compressor", "compressor", kind, c.index_dim),
        ]
    return weights


def _compressor(c: ModelConfig, prefix: str, part: Part, kind: LayerKind, width: int) -> list[Weight]:
    rows = kind.halves * width
    return [
        _f32(f"{prefix}.ape", part, kind.ratio, rows),
        _bf16(f"{prefix}.wkv.weight", part, rows, c.hidden_size),
        _bf16(f"{prefix}.wgate.weight", part, rows, c.hidden_size),
        _bf16(f"{prefix}.norm.weight", "norm", width),
    ]


def _expert(c: ModelConfig, prefix: str, part: Part, form: Form) -> tuple[Weight, Weight, Weight]:
    inner, outer = (c.expert_width, c.hidden_size), (c.hidden_size, c.expert_width)
    gate, up, down = (
        _coded(c, f"{prefix}.{matrix}.weight", part, form, outer if matrix == "w2" else inner)
        for matrix in EXPERT_MATRICES
    )
    return gate, up, down


def _hyper(c: ModelConfig, prefix: str) -> list[Weight]:
    mixes = (2 + c.streams) * c.streams  # pre, post and the stream-to-stream matrix
    return [
        _f32(f"{prefix}_fn", "hyper", mixes, c.streams * c.hidden_size),
        _f32(f"{prefix}_base", "hyper", mixes),
        _f32(f"{prefix}_scale", "hyper", 3),
    ]


def _hyper_head(c: ModelConfig, prefix: str) -> list[Weight]:
    return [
        _f32(f"{prefix}hc_head_fn", "hyper", c.streams, c.streams * c.hidden_size),
        _f32(f"{prefix}hc_head_base", "hyper", c.streams),
        _f32(f"{prefix}hc_head_scale", "hyper", 1),
    ]


def _coded(c: ModelConfig, name: str, part: Part, form: Form, shape: tuple[int, int]) -> Weight:
    """An FP8 or FP4 matrix. With FP8 experts, all scales are published as floats; bytes mean the same."""
    scales = ("F32", "F8_E8M0") if c.expert_format == "fp8" else ("F8_E8M0",)
    return Weight(name, part, form, shape, scales)


def _bf16(name: str, part: Part, *shape: int) -> Weight:
    return Weight(name, part, "raw", shape, ("BF16",))


def _f32(name: str, part: Part, *shape: int) -> Weight:
    return Weight(name, part, "raw", shape, ("F32",))
