"""Every way to store a model: as it was published, and in each recipe; from its headers, or for V4-Flash from
the shipped table of its tensors, without a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsv4_mlx.checkpoint.inventory import Inventory, Weight, inventory
from dsv4_mlx.checkpoint.manifest import MX_GROUP, NATIVE, OFFICIAL, Manifest, record_bytes, record_segments
from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.checkpoint.source import INDEX, Source
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.conversion_plan import ConversionPlan as Files
from dsv4_mlx.convert.conversion_plan import make_plan
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.summary import text_bytes
from dsv4_mlx.convert.trial import BytesWritten, bytes_written
from dsv4_mlx.engine.memory import touched_weights
from dsv4_mlx.paging.sizing import Experts
from dsv4_mlx.planning.fit import Fit, Stored, budget_here, fit
from dsv4_mlx.synthetic.configs import Release, release_config
from dsv4_mlx.weights.load import find_model
from dsv4_mlx.weights.official import OfficialModel

RELEASES: dict[str, Release] = {  # repository -> whose config is shipped
    "deepseek-ai/DeepSeek-V4-Flash": "flash",
    "deepseek-ai/DeepSeek-V4-Flash-Base": "base",
    "deepseek-ai/DeepSeek-V4-Flash-0731": "0731",
    "deepseek-ai/DeepSeek-V4-Pro": "pro",
}
DEFAULT = next(iter(RELEASES))


def candidates_for(folder: Path | None, repository: str = DEFAULT) -> tuple[list[Candidate], ModelConfig]:
    """None: the release that `repository` names, one of RELEASES. A converted model has one way: as it is.

    Raises InputError, MachineError.
    """
    if folder is None:
        config = shipped_config(RELEASES[repository])
        return candidates(config), config
    stored = find_model(folder)
    config = stored.config
    if isinstance(stored, OfficialModel):
        return candidates(config, stored.source), config
    manifest = stored.manifest
    listing = (folder / MANIFEST).stat().st_size
    return [stored_candidate(config, manifest, stored.tensor_bytes(), listing)], config


def converted_flash() -> tuple[list[Candidate], ModelConfig]:
    """V4-Flash in every recipe of the converter."""
    config = flash_config()
    return [way for way in candidates(config) if way.name != OFFICIAL], config


def fit_here(folder: Path) -> Fit:
    """How the model in `folder`, as it is, runs on this machine. Raises InputError, MachineError."""
    ways, config = candidates_for(folder)
    return fit(ways[0].stored, config, budget_here())


@dataclass(frozen=True)
class DenseWeights:
    """Bytes of the `shared` experts and of the `head` as stored; how many `weights` the layers have besides
    their routed experts."""

    shared: int
    head: int
    weights: int


@dataclass(frozen=True)
class Candidate:
    """`stored.bytes` are those of the weight files. `shards`: what must be downloaded for it, per file.

    `touched`: bytes of weights that one decoded token reads. `written`: what its conversion writes; None
    where nothing is converted. `texts`: bytes of all other files, 0 where they are not known.
    """

    stored: Stored
    shards: tuple[int, ...]
    touched: int
    dense: DenseWeights
    written: BytesWritten | None = None
    texts: int = 0

    @property
    def name(self) -> str:
        return self.stored.name


def candidates(config: ModelConfig, source: Source | None = None) -> list[Candidate]:
    """The official files first, then the recipes. With `source`, the checkpoint itself, every file to the
    byte; without, the headers of the official files and all texts are missing."""
    table = inventory(config)
    if source is None:
        shards = tuple(sum(t.bytes for w in shard for t in w.tensors()) for shard in table.shards())
    else:
        shards = tuple(header.size for header in source.shards.values())
    expert = table.layers[0].experts[0]
    record = record_bytes(record_segments(*expert, NATIVE[expert[0].form]))
    sizes = _official_sizes(table)
    touched, dense = _touched(config, sizes, record), _dense(table, sizes)
    repeated = sum(math.prod(w.shape) // MX_GROUP for w in table.weights() if w.form == "fp8")
    stored = _stored(OFFICIAL, sum(shards), config, record, repeated)
    found = [Candidate(stored, shards, touched, dense, texts=_texts(source))]
    for name, recipe in RECIPES.items():
        files = make_plan(table, recipe, _stored_dtypes(source) if source is not None else None)
        record = max(file.records.record_bytes for file in files.files if file.records)
        sizes = _written_sizes(files)
        touched, dense = _touched(config, sizes, record), _dense(table, sizes)
        texts = text_bytes(files, source) if source is not None else 0
        stored = _stored(name, files.bytes, config, record)
        found.append(Candidate(stored, shards, touched, dense, bytes_written(files), texts))
    return found


def _stored_dtypes(source: Source) -> Callable[[Weight], str]:
    return lambda weight: source.entry(weight.name).dtype


def _texts(source: Source | None) -> int:
    if source is None:
        return 0
    return sum(len(text) for text in source.texts.values()) + (source.folder / INDEX).stat().st_size


def stored_candidate(
    config: ModelConfig, manifest: Manifest, sizes: dict[str, int], listing: int
) -> Candidate:
    """A model that is converted already: nothing is downloaded for it. `sizes`: bytes of each tensor of the
    manifest, `listing`: of manifest.json."""
    weights = sum(size for name, size in manifest.files.items() if name.endswith(".safetensors"))
    texts = sum(manifest.files.values()) - weights + listing
    record = max(table.record_bytes for table in manifest.experts.values())
    touched, dense = touched_weights(config, manifest, sizes), _dense(inventory(config), sizes)
    return Candidate(_stored(manifest.recipe, weights, config, record), (), touched, dense, texts=texts)


def _stored(name: str, size: int, config: ModelConfig, record: int, repeated: int = 0) -> Stored:
    experts = Experts(config.layers, config.experts, config.experts_per_token, record, config.draft_blocks)
    idle = (config.extra_blocks - config.draft_blocks) * config.experts * record
    return Stored(name, size, experts, repeated, idle)


def flash_config() -> ModelConfig:
    """V4-Flash of April 2026."""
    return shipped_config("flash")


def shipped_config(release: Release) -> ModelConfig:
    """A release's published config.json, which is shipped."""
    return parse_config(json.dumps(release_config(release, true_size=True)), release)


def _official_sizes(table: Inventory) -> dict[str, int]:
    dense = [weight for block in table.layers for weight in block.weights]
    return {w.name: sum(t.bytes for t in w.tensors()) for w in (table.embed, *table.head, *dense)}


def _written_sizes(files: Files) -> dict[str, int]:
    return {
        target.weight.name: sum(part.bytes for part in target.parts.values())
        for file in files.files
        for target in file.targets
    }


def _dense(table: Inventory, sizes: dict[str, int]) -> DenseWeights:
    layers = {name: size for name, size in sizes.items() if not name.startswith("mtp.")}
    shared = sum(size for name, size in layers.items() if ".shared_experts." in name)
    head = sum(size for name, size in layers.items() if name.startswith("head."))
    return DenseWeights(
        shared, head, sum(math.prod(w.shape) for block in table.layers for w in block.weights)
    )


def _touched(config: ModelConfig, sizes: dict[str, int], record: int) -> int:
    """As engine.memory.touched_weights: a row of each table, the chosen experts, all else; no draft block."""
    total = config.layers * config.experts_per_token * record
    for name, size in sizes.items():
        if not name.startswith("mtp."):
            table = name.startswith("embed.") or name.endswith(".tid2eid")
            total += size // config.vocab_size if table else size
    return total
