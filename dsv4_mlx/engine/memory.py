"""What a model and its state cost in bytes. Pure arithmetic: the same numbers for `info` and for limits."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_mlx.checkpoint.manifest import OFFICIAL, PACKINGS, Manifest
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.state import GROWTH, SLACK

DEFAULT_CONTEXT = 131_072
DRAFT = "draft block (MTP)"
_LEAST_WORKSPACE, _MOST_WORKSPACE = 512 << 20, 4 << 30
RESTART_POINTS = 12  # snapshots that a session keeps to go back to; 18 MB each at full size
_COMPONENTS = (
    ("embedding", ("embed.",)),
    ("head", ("head.", "norm.", "hc_head_")),
)


@dataclass(frozen=True)
class StateBytes:
    """Memory of one sequence. `fixed` does not depend on the context; `per_token` is the average growth."""

    fixed: int
    rows: int
    per_token: float

    @property
    def total(self) -> int:
        return self.fixed + self.rows

    @property
    def session(self) -> int:
        """With the restart points that a session keeps: each is a copy of what is fixed."""
        return self.total + RESTART_POINTS * self.fixed


def state_bytes(config: ModelConfig, tokens: int, element: int, growth: int = GROWTH) -> StateBytes:
    """The state after `tokens` tokens, rows of `element`-byte numbers, allocated in steps of `growth`."""
    capacity = -(-tokens // growth) * growth
    fixed = rows = 0
    per_token = 0.0
    for layer in range(config.layers + config.draft_blocks):
        kind = config.kind(layer)
        fixed += (config.window + SLACK) * config.head_dim * element
        if kind.ratio:
            width = config.head_dim + kind.indexed * config.index_dim
            fixed += (kind.halves * kind.ratio + SLACK) * 2 * kind.halves * width * 4
            rows += capacity // kind.ratio * width * element
            per_token += width * element / kind.ratio
    return StateBytes(fixed, rows, per_token)


def workspace(weights: int) -> int:
    """Estimated bytes for the activations of a 512-row chunk, MLX's buffer cache and the program."""
    return min(_MOST_WORKSPACE, _LEAST_WORKSPACE + weights // 8)


def expert_room(config: ModelConfig, others: int, limit: int, context: int, element: int) -> int:
    """Bytes that are left for routed experts in `limit` bytes beside `others`, all other weights, the
    workspace of both, and a session of `context` tokens. Negative if not even the others fit."""
    free = limit - state_bytes(config, context, element).session
    eighths, rest = divmod(
        free - _LEAST_WORKSPACE, 9
    )  # the most w with w + w // 8 <= free - _LEAST_WORKSPACE
    return max(free - _MOST_WORKSPACE, 8 * eighths + min(rest, 7)) - others


def largest_context(config: ModelConfig, weights: int, limit: int, element: int) -> int:
    """The longest context up to DEFAULT_CONTEXT that fits beside the weights in `limit` bytes; 0 if none."""
    free = limit - weights - workspace(weights)
    context = min(DEFAULT_CONTEXT, config.max_context)
    while context and state_bytes(config, context, element).session > free:
        context = (context - 1) // GROWTH * GROWTH
    return context


def repeated_scales(manifest: Manifest) -> int:
    """Bytes of the scales that are repeated in memory when an official folder is read; no file has them."""
    if manifest.recipe != OFFICIAL:
        return 0
    dense = [tensor.shape for tensor in manifest.tensors.values() if tensor.format == "mxfp8"]
    tables = [table for table in manifest.experts.values() if table.format == "mxfp8"]
    experts = sum(t.count * s.bytes for t in tables for s in t.segments if s.dtype == "U8")
    group = PACKINGS["mxfp8"].group
    return sum(rows * columns // group for rows, columns in dense) + experts


def component_bytes(sizes: dict[str, int], experts: dict[str, int]) -> dict[str, int]:
    """Stored bytes per component; `sizes` gives those of each tensor of the manifest, `experts` those of the
    routed experts of each block."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        component = component_of(name)
        found[component] = found.get(component, 0) + size
    for block, size in experts.items():
        component = DRAFT if block.startswith("mtp.") else "routed experts"
        found[component] = found.get(component, 0) + size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def component_of(name: str) -> str:
    """The part of the model that an official tensor name belongs to."""
    if name.startswith("mtp."):
        return DRAFT
    for component, prefixes in _COMPONENTS:
        if name.startswith(prefixes):
            return component
    for component, mark in (
        ("indexers", ".indexer."),
        ("compressors", ".compressor."),
        ("attention", ".attn."),
        ("shared experts", ".shared_experts."),
        ("router", ".ffn.gate."),
        ("hyper-connections", ".hc_"),
    ):
        if mark in name:
            return component
    return "norms"


def touched_weights(config: ModelConfig, manifest: Manifest, sizes: dict[str, int]) -> int:
    """Stored bytes of weights that one decoded token reads: its experts, its rows of tables, all the rest.

    `sizes` as for component_bytes. The draft block is not read.
    """
    total = 0
    for name, size in sizes.items():
        if name.startswith("mtp."):
            continue
        table = name.startswith("embed.") or name.endswith(".tid2eid")
        total += size // config.vocab_size if table else size
    for block, experts in manifest.experts.items():
        if not block.startswith("mtp."):
            total += config.experts_per_token * experts.record_bytes
    return total


def touched_state(config: ModelConfig, context: int, element: int) -> int:
    """Bytes of the state that one token reads after `context` tokens, rows of `element`-byte numbers."""
    total = 0
    for layer in range(config.layers):
        kind = config.kind(layer)
        total += min(context, config.window) * config.head_dim * element
        rows = context // kind.ratio if kind.ratio else 0
        if kind.indexed and rows > config.index_topk:
            total += rows * config.index_dim * element
            rows = config.index_topk
        total += rows * config.head_dim * element
    return total
