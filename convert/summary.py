"""After the last file: the manifest, and what the conversion amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import dsv4_mlx
from dsv4_mlx.checkpoint.identity import identify
from dsv4_mlx.checkpoint.inventory import Inventory
from dsv4_mlx.checkpoint.manifest import ExpertTable, Manifest, ManifestTensor
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.convert.conversion_plan import ConversionPlan, ExpertRecords, FilePlan, TargetTensor

Status = Literal["converted", "resumed", "repaired", "nothing to do"]


@dataclass
class Effort:
    """What this call did, as opposed to a run that it continued; seconds as in `Streamer`."""

    bytes: int = 0  # written
    finished_bytes: int = 0  # of those, in finished files
    kept_bytes: int = 0  # in files that an earlier run finished
    hash_seconds: float = 0.0
    write_seconds: float = 0.0
    repaired: tuple[str, ...] = ()  # files that were made again


@dataclass(frozen=True)
class PartCost:
    """One component's weights: bytes in the official checkpoint and after conversion, by target format."""

    weights: int
    official_bytes: int
    bytes: int
    formats: dict[str, int]  # format -> number of weights


@dataclass(frozen=True)
class Summary:
    """What `convert` reports. `kept` lists weights that the recipe had to leave in their native format,
    `extra` the blocks after the layers, which draft tokens, `left_out` copies of other tensors, `repaired`
    the files of a finished conversion that were damaged and are made again."""

    status: Status
    source: str
    target: str
    recipe: str
    checkpoint: str
    tensors: int  # of the official checkpoint, each used once
    expert_records: int
    bytes: int  # of all files, manifest and texts aside
    bytes_written: int
    seconds: float
    hash_seconds: float
    write_seconds: float
    kept: tuple[str, ...]
    extra: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    parts: dict[str, PartCost] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    status: Status,
    plan: ConversionPlan,
    table: Inventory,
    source: Source,
    target: Path,
    seconds: float,
    effort: Effort,
) -> Summary:
    left_out = tuple(copy.name for copy in table.copies if copy.name in source.where)
    return Summary(
        status=status,
        source=str(source.folder),
        target=str(target),
        recipe=plan.recipe,
        checkpoint=source.config.checkpoint,
        tensors=len(source.where) - len(left_out),
        expert_records=sum(len(block.experts) for block in table.blocks),
        bytes=plan.bytes,
        bytes_written=effort.bytes,
        seconds=seconds,
        hash_seconds=effort.hash_seconds,
        write_seconds=effort.write_seconds,
        kept=plan.kept,
        extra=tuple(block.prefix for block in table.extra),
        left_out=left_out,
        repaired=effort.repaired,
        parts=part_costs(plan),
    )


def part_costs(plan: ConversionPlan) -> dict[str, PartCost]:
    """Bytes of each component before and after. Padding of expert records counts."""
    counts: dict[str, int] = {}
    official: dict[str, int] = {}
    stored: dict[str, int] = {}
    formats: dict[str, dict[str, int]] = {}

    def add(part: str, form: str, before: int, after: int, weights: int) -> None:
        counts[part] = counts.get(part, 0) + weights
        official[part] = official.get(part, 0) + before
        stored[part] = stored.get(part, 0) + after
        kinds = formats.setdefault(part, {})
        kinds[form] = kinds.get(form, 0) + weights

    for file in plan.files:
        for target in file.targets:
            before = sum(tensor.bytes for tensor in target.weight.tensors())
            after = sum(placed.bytes for placed in target.parts.values())
            add(target.weight.part, target.format, before, after, 1)
        if file.records is not None:
            for expert in file.records.experts:
                before = sum(tensor.bytes for weight in expert for tensor in weight.tensors())
                add("experts", file.records.format, before, file.records.record_bytes, len(expert))
    return {name: PartCost(counts[name], official[name], stored[name], formats[name]) for name in counts}


def build_manifest(
    plan: ConversionPlan,
    source: Source,
    facts: Mapping[str, Any],
    digests: Mapping[str, Mapping[str, str]],
    made_by: str = f"dsv4-mlx {dsv4_mlx.__version__}",
) -> Manifest:
    """The manifest of a conversion whose files all exist; `digests` is file -> digest key -> SHA-256."""
    tensors: dict[str, ManifestTensor] = {}
    experts: dict[str, ExpertTable] = {}
    for file in plan.files:
        for target in file.targets:
            tensors[target.weight.name] = manifest_tensor(file.name, target, digests[file.name])
        if file.records is not None:
            experts[file.records.prefix] = expert_table(file.name, file.records, digests[file.name])
    sizes = {name: len(text) for name, text in source.texts.items()}
    return Manifest(
        recipe=plan.recipe,
        checkpoint=source.config.checkpoint,
        source=dict(facts),
        tensors=tensors,
        experts=experts,
        files=sizes | {file.name: file.size for file in plan.files},
        made_by=made_by,
    )


def text_bytes(plan: ConversionPlan, source: Source) -> int:
    """Bytes of a finished conversion's files that are not weights: the manifest, and what is copied.

    A digest is as long as any other, so the manifest's length is known before its digests are.
    """
    blank = "0" * 64
    digests = {file.name: dict.fromkeys(digest_keys(file), blank) for file in plan.files}
    facts = identify(source, lambda name, header: ())
    manifest = build_manifest(plan, source, facts, digests).to_json().encode()
    return len(manifest) + sum(len(text) for text in source.texts.values())


def digest_keys(file: FilePlan) -> list[str]:
    """What a file has digests of: its tensors as stored, or its records by number."""
    keys = [placed.key for target in file.targets for placed in target.parts.values()]
    return keys + [str(number) for number in range(len(file.records.experts) if file.records else 0)]


def manifest_tensor(file: str, target: TargetTensor, digests: Mapping[str, str]) -> ManifestTensor:
    keys = {part: placed.key for part, placed in target.parts.items()}
    return ManifestTensor(
        file, target.format, target.weight.shape, keys, {part: digests[key] for part, key in keys.items()}
    )


def expert_table(file: str, records: ExpertRecords, digests: Mapping[str, str]) -> ExpertTable:
    count = len(records.experts)
    return ExpertTable(
        file, records.format, count, records.record_bytes, records.segments,
        tuple(digests[str(number)] for number in range(count)),
    )  # fmt: skip


def known_digests(plan: ConversionPlan, manifest: Manifest | None) -> dict[str, dict[str, str]]:
    """file -> digest key -> SHA-256, of the files of which a manifest that may be damaged knows all."""
    found: dict[str, dict[str, str]] = {}
    if manifest is None:
        return found
    for file in plan.files:
        digests: dict[str, object] = {}
        for target in file.targets:
            tensor = manifest.tensors.get(target.weight.name)
            for part, placed in target.parts.items():
                digests[placed.key] = tensor.digests.get(part) if tensor else None
        if file.records is not None:
            table = manifest.experts.get(file.records.prefix)
            digests |= {str(number): digest for number, digest in enumerate(table.digests if table else ())}
        known = {key: digest for key, digest in digests.items() if isinstance(digest, str)}
        if known.keys() == set(digest_keys(file)):
            found[file.name] = known
    return found
