"""Models without bytes: the shapes and dtypes of every array, none read, none in memory."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.checkpoint.inventory import Inventory, Weight, inventory
from dsv4_mlx.checkpoint.manifest import (
    NATIVE,
    OFFICIAL,
    ExpertTable,
    Manifest,
    ManifestTensor,
    packed,
    record_bytes,
    record_segments,
)
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.conversion_plan import make_plan
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.convert.summary import build_manifest
from dsv4_mlx.model.tensors import ExpertProduct
from dsv4_mlx.synthetic import release_config
from dsv4_mlx.synthetic.configs import Release
from dsv4_mlx.weights.records import RecordMap
from dsv4_mlx.weights.resident_experts import ResidentExperts
from dsv4_mlx.weights.stored import Advance, StoredModel

DTYPES = {
    "U32": mx.uint32, "U8": mx.uint8, "BF16": mx.bfloat16, "F32": mx.float32, "I64": mx.int64,
}  # fmt: skip


class BlankArrays:
    """ArraySource of a stored model's shapes. All is 0, hash tables too."""

    def __init__(self, stored: StoredModel) -> None:
        raw = {weight.name: weight.dtypes for weight in inventory(stored.config).weights()}
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, record in stored.manifest.tensors.items():
            if record.format == "raw":
                self._kinds[record.parts["weight"]] = raw[name][0], record.shape
                continue
            rows, columns = record.shape
            kinds = packed(record.format, rows, columns)
            self._kinds |= {key: kinds[part] for part, key in record.parts.items()}

    def array(self, file: str, key: str) -> mx.array | None:
        dtype, shape = self._kinds.pop(key)
        return mx.zeros(shape, DTYPES[dtype])

    def records(self, block: str, table: ExpertTable) -> mx.array:
        return blank_records(table)

    def finished(self) -> None:
        """Nothing was read."""

    def close(self) -> None:
        """Nothing is open."""


def blank_records(table: ExpertTable) -> mx.array:
    """As resident_experts.room, not evaluated."""
    return mx.zeros((table.count, table.record_bytes // 8), mx.uint64).view(mx.uint32)


class BlankSlots:
    """Slots for the experts of a layer, as a Pager gives them out, without memory."""

    def __init__(self, slots: int, dtype: mx.Dtype) -> None:
        self.slots, self.dtype = slots, dtype

    def __call__(self, block: str, records: RecordMap, product: ExpertProduct) -> ResidentExperts:
        layout = records.slots(self.slots)
        return ResidentExperts(blank_records(layout), layout, self.dtype, product)


class BlankModel:
    """StoredModel of a release at its true size, as published (stored "official") or in a recipe."""

    def __init__(self, release: Release, stored: str) -> None:
        config = json.dumps(release_config(release, true_size=True))
        self.folder, self.config = Path(f"{release}-{stored}"), parse_config(config, release)
        table = inventory(self.config)
        if stored == OFFICIAL:
            self.manifest = _as_published(self.config, table)
        else:
            plan = make_plan(table, find_recipe(stored))
            digests: dict[str, dict[str, str]] = {file.name: defaultdict(str) for file in plan.files}
            source = Source(self.folder, self.config, {}, "", {}, {})
            self.manifest = build_manifest(plan, source, {}, digests)

    def tensor_bytes(self) -> dict[str, int]:
        return {}

    def expert_bytes(self) -> dict[str, int]:
        return {block: t.count * t.record_bytes for block, t in self.manifest.experts.items()}

    def record_map(self, block: str) -> RecordMap:
        table = self.manifest.experts[block]
        return RecordMap((), (), table, ((),) * table.count)

    def arrays(self, advance: Advance) -> BlankArrays:
        return BlankArrays(self)


@cache
def blank_model(release: Release, stored: str) -> BlankModel:
    return BlankModel(release, stored)


def _as_published(config: ModelConfig, table: Inventory) -> Manifest:
    shards = table.shards()
    weights = [weight for shard in shards for weight in shard if weight.part != "experts"]
    sizes = [sum(t.bytes for weight in shard for t in weight.tensors()) for shard in shards]
    experts = {}
    for block in table.blocks:
        form = NATIVE[block.experts[0][0].form]
        segments = record_segments(*block.experts[0], form)
        experts[block.prefix] = ExpertTable(
            "", form, len(block.experts), record_bytes(segments), segments, ()
        )
    return Manifest(
        recipe=OFFICIAL,
        checkpoint=config.checkpoint,
        source={},
        tensors={weight.name: _record(weight) for weight in weights},
        experts=experts,
        files={f"model-{number}.safetensors": size for number, size in enumerate(sizes)},
    )


def _record(weight: Weight) -> ManifestTensor:
    parts = {"weight": weight.name} | ({"scales": weight.scale_name} if weight.form == "fp8" else {})
    return ManifestTensor("", NATIVE[weight.form], weight.shape, parts, {})
