"""Every way to store a model: as it was published, and in each recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_mlx.checkpoint.native import record_bytes, record_segments
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert import RECIPES
from dsv4_mlx.convert.plan import Plan as Files
from dsv4_mlx.convert.plan import make_plan
from dsv4_mlx.doctor.fit import Stored
from dsv4_mlx.manifest import Manifest
from dsv4_mlx.official import Inventory, Weight, inventory
from dsv4_mlx.paging.sizing import Experts
from dsv4_mlx.synthetic.configs import release_config

OFFICIAL = "official"  # the published files, used as they are


@dataclass(frozen=True)
class Candidate:
    """`stored.bytes` are those of the weight files. `shards`: what must be downloaded for it, per file.

    `touched`: bytes of weights that one decoded token reads.
    """

    stored: Stored
    shards: tuple[int, ...]
    touched: int

    @property
    def name(self) -> str:
        return self.stored.name


def candidates(config: ModelConfig, dtype_of: Callable[[Weight], str] | None = None) -> list[Candidate]:
    """The official files first, then the recipes. `dtype_of` as for make_plan."""
    table = inventory(config)
    shards = tuple(sum(t.bytes for w in shard for t in w.tensors()) for shard in table.shards())
    record = record_bytes(record_segments(*table.layers[0].experts[0]))
    experts = Experts(config.layers, config.experts, config.experts_per_token, record, config.draft_blocks)
    found = [
        Candidate(Stored(OFFICIAL, sum(shards), experts), shards, _touched_official(config, table, record))
    ]
    for name, recipe in RECIPES.items():
        files = make_plan(table, recipe, dtype_of)
        touched = _touched(config, files, record)
        found.append(Candidate(Stored(name, files.bytes, experts), shards, touched))
    return found


def stored_candidate(config: ModelConfig, manifest: Manifest, touched: int) -> Candidate:
    """A model that is converted already: nothing is downloaded for it."""
    weights = sum(size for name, size in manifest.files.items() if name.endswith(".safetensors"))
    record = max(table.record_bytes for table in manifest.experts.values())
    experts = Experts(config.layers, config.experts, config.experts_per_token, record, config.draft_blocks)
    return Candidate(Stored(manifest.recipe, weights, experts), (), touched)


def flash_config() -> ModelConfig:
    """V4-Flash of April 2026: its published config.json, shipped."""
    return parse_config(json.dumps(release_config("flash", true_size=True)), "V4-Flash")


def _touched_official(config: ModelConfig, table: Inventory, record: int) -> int:
    dense = [weight for block in table.layers for weight in block.weights]
    sizes = {w.name: sum(t.bytes for t in w.tensors()) for w in (table.embed, *table.head, *dense)}
    return _sum(config, sizes, record)


def _touched(config: ModelConfig, files: Files, record: int) -> int:
    sizes = {
        target.weight.name: sum(part.bytes for part in target.parts.values())
        for file in files.files
        for target in file.targets
    }
    return _sum(config, sizes, record)


def _sum(config: ModelConfig, sizes: dict[str, int], record: int) -> int:
    """As engine.memory.touched_weights: a row of each table, the chosen experts, all else; no draft block."""
    total = config.layers * config.experts_per_token * record
    for name, size in sizes.items():
        if not name.startswith("mtp."):
            table = name.startswith("embed.") or name.endswith(".tid2eid")
            total += size // config.vocab_size if table else size
    return total
