"""Prove a converted model: structure, digests and, against the official checkpoint, values.

Nothing in the folder is taken on trust but `config.json` and the recipe's name: from them the plan is made
again, and files, headers and manifest must be what the plan says. Then every byte is hashed.

An official folder that was downloaded is held against the digests that the Hub lists for its files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.header import Header, read_header
from dsv4_mlx.checkpoint.identity import STATE, downloaded, identify, identity_of, stored_digest
from dsv4_mlx.checkpoint.inventory import Inventory, Weight, inventory
from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.checkpoint.manifest import OFFICIAL, REPAIR, Manifest, config_of, read_manifest
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.reader import FolderReader, SourceReader
from dsv4_mlx.checkpoint.source import INDEX, Source, open_source
from dsv4_mlx.convert.conversion_plan import ConversionPlan, FilePlan, make_plan
from dsv4_mlx.convert.differences import Comparison, Damage, Deviation
from dsv4_mlx.convert.pipeline import BLOCK, check_block
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.summary import PartCost, part_costs
from dsv4_mlx.errors import InputError, MachineError

Progress = Callable[[int, int, str], None]
THREADS = 2


@dataclass(frozen=True)
class PartError:
    """How far one component is from the official values: the worst of its weights, by two measures.

    `relative` is the root mean square error over the root mean square value of a weight; `relative_worst` is
    its largest error over its largest value. Both are 0 for a component that was carried over losslessly.
    """

    relative: float
    relative_worst: float
    weight: str  # the one with the worst `relative`; empty if there is no error


@dataclass(frozen=True)
class Report:
    """What `verify` found. `errors` is by component, and only there if the source was given.

    Of an official folder: `files` with a digest to hold them against, and how many are `unknown`.
    """

    model: str
    against: str | None
    recipe: str
    files: int
    weights: int  # outside the routed experts
    expert_records: int
    bytes: int
    seconds: float
    damage: tuple[Damage, ...]
    parts: dict[str, PartCost]
    errors: dict[str, PartError]
    unknown: int = 0

    @property
    def ok(self) -> bool:
        return not self.damage

    @property
    def lossless(self) -> bool | None:
        """Whether every value equals the official one; None if there was nothing to compare with."""
        if self.against is None:
            return None
        return self.ok and not any(error.relative_worst for error in self.errors.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok, "lossless": self.lossless}


def verify(
    model: Path, against: Path | None = None, *, progress: Progress | None = None, block: int = BLOCK
) -> Report:
    """Check the converted folder `model`, with `against` also every value against the official checkpoint.

    Damage is reported, not raised, and located by weight or expert. Raises InputError if `model` is not a
    finished conversion, or not one of `against`; MachineError if reading fails.
    """
    started = time.monotonic()
    check_block(block)
    if is_official(model):
        return verify_official(model, progress)
    manifest = read_manifest(model)
    if manifest.recipe not in RECIPES:
        raise InputError(
            f"the model was made with the recipe {manifest.recipe!r}, which this program doesn't know",
            where=model,
            next=f"use the version of dsv4-mlx that made it; or, if a byte of its name is wrong: {REPAIR}",
        )
    source = None if against is None else _source(model, manifest, against)
    try:
        table = inventory(config_of(model, manifest)) if source is None else match(source)
    except InputError as error:
        if source is not None:
            raise
        raise InputError(error.message, where=error.where, next=REPAIR) from None
    headers = _headers(model, table, manifest)
    plan = make_plan(table, RECIPES[manifest.recipe], _stored_dtypes(manifest, headers))
    damage = [*_texts(model, manifest, source), *_structure(plan, manifest, headers)]
    unsound = {found.file for found in damage}
    errors: dict[str, PartError] = {}
    if not unsound & {MANIFEST, "config.json"}:
        damage += contents(model, source, plan, manifest, unsound, errors, progress, block)
    return Report(
        model=str(model),
        against=None if against is None else str(against),
        recipe=manifest.recipe,
        files=len(plan.files),
        weights=sum(len(file.targets) for file in plan.files),
        expert_records=sum(len(file.records.experts) for file in plan.files if file.records),
        bytes=plan.bytes,
        seconds=time.monotonic() - started,
        damage=tuple(damage),
        parts=part_costs(plan),
        errors=errors,
    )


def is_official(folder: Path) -> bool:
    """Whether this is an official folder, complete or not."""
    marks = (folder / INDEX, folder / STATE)
    shards = any(folder.glob("model-*-of-*.safetensors"))
    return not (folder / MANIFEST).exists() and (shards or any(mark.exists() for mark in marks))


def verify_official(folder: Path, progress: Progress | None = None) -> Report:
    """Hold every file of a downloaded official folder against the digest that the Hub lists for it.

    Raises InputError where no digest is here; MachineError if reading fails.
    """
    started = time.monotonic()
    digests, damage, done = downloaded(folder), [], 0
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not digests:
        raise InputError(
            "the digests that the Hub lists for these files are not here: nothing to verify them with",
            where=folder,
            next=f"dsv4-mlx download ORG/NAME {folder} fetches them, and keeps every file that is right",
        )
    sizes = {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in digests}
    total = sum(sizes.values())

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, name)

    for name, digest in digests.items():
        try:
            if stored_digest(folder / name, digest, advance) != digest:
                damage.append(Damage(name, "", "is not the file that the Hub lists"))
        except FileNotFoundError:
            damage.append(Damage(name, "", "is missing"))
        except OSError as error:
            raise MachineError(f"the file can't be read: {error.strerror}", where=folder / name) from None
    return Report(
        model=str(folder),
        against=None,
        recipe=OFFICIAL,
        files=len(digests),
        weights=0,
        expert_records=0,
        bytes=total,
        seconds=time.monotonic() - started,
        damage=tuple(damage),
        parts={},
        errors={},
        unknown=len(weights - digests.keys()),
    )


def _source(model: Path, manifest: Manifest, against: Path) -> Source:
    source = open_source(against)
    identity = identify(source)["identity"]
    if identity != manifest.source.get("identity"):
        made_from = str(manifest.source.get("identity"))
        raise InputError(
            f"the model was made from another checkpoint (identity {made_from[:12]}, not {identity[:12]})",
            where=model,
            next="give the folder that it was converted from",
        )
    return source


def _headers(model: Path, table: Inventory, manifest: Manifest) -> dict[str, Header | str]:
    """file -> its header, or what is wrong with it."""
    headers: dict[str, Header | str] = {}
    plan = make_plan(table, RECIPES[manifest.recipe])
    for file in plan.files:
        try:
            headers[file.name] = read_header(model / file.name)
        except MachineError:
            raise
        except InputError as error:
            headers[file.name] = error.message
    return headers


def _stored_dtypes(manifest: Manifest, headers: dict[str, Header | str]) -> Callable[[Weight], str]:
    def dtype(weight: Weight) -> str:
        tensor = manifest.tensors.get(weight.name)
        header = headers.get(tensor.file) if tensor else None
        if isinstance(header, Header) and weight.name in header.tensors:
            stored = header.tensors[weight.name].dtype
            if stored in weight.dtypes:
                return stored
        return weight.dtypes[0]

    return dtype


def _texts(model: Path, manifest: Manifest, source: Source | None) -> Iterator[Damage]:
    """config.json, tokenizer.json and the like must be the source's own."""
    texts = manifest.source.get("texts")
    if not isinstance(texts, dict):
        yield Damage(MANIFEST, "", "the digests of config.json and tokenizer.json are missing")
        return
    if identity_of(manifest.source) != manifest.source.get("identity"):
        yield Damage(MANIFEST, "", "what it says of its source contradicts itself")
    if source is not None:  # the manifest may have been made anew: the source itself says
        texts = texts | {name: hashlib.sha256(data).hexdigest() for name, data in source.texts.items()}
    for name, digest in texts.items():
        try:
            found = hashlib.sha256((model / Path(name).name).read_bytes()).hexdigest()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            yield Damage(name, "", f"can't be read: {getattr(error, 'strerror', None) or error}")
            continue
        if found != digest:
            yield Damage(name, "", "is not the file that was copied from the source")


def _structure(
    plan: ConversionPlan, manifest: Manifest, headers: dict[str, Header | str]
) -> Iterator[Damage]:
    """Files, headers and manifest against the plan."""
    planned = {target.weight.name for file in plan.files for target in file.targets}
    blocks = {file.records.prefix for file in plan.files if file.records}
    for name in sorted(planned ^ manifest.tensors.keys()):
        yield Damage(MANIFEST, name, "is missing" if name in planned else "is unknown")
    for prefix in sorted(blocks ^ manifest.experts.keys()):
        yield Damage(MANIFEST, f"{prefix}.ffn.experts", "is missing" if prefix in blocks else "is unknown")
    sizes = {name: size for name, size in manifest.files.items() if name.endswith(".safetensors")}
    if sizes != {file.name: file.size for file in plan.files}:
        yield Damage(MANIFEST, "", "the list of files is not the one that config and recipe demand")
    for file in plan.files:
        header = headers[file.name]
        if isinstance(header, str):
            yield Damage(file.name, "", header)
            continue
        yield from _table(file, header)
        yield from _records_of(file, manifest)


def _table(file: FilePlan, header: Header) -> Iterator[Damage]:
    """A file's table of contents against its plan."""
    expected = {
        placed.key: (placed.dtype, placed.shape, placed.offset)
        for target in file.targets
        for placed in target.parts.values()
    }
    if file.records is not None:
        records = file.records
        shape = (len(records.experts), records.record_bytes // 4)
        expected["experts"] = ("U32", shape, records.offset)
    found = {name: (entry.dtype, entry.shape, entry.start) for name, entry in header.tensors.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            yield Damage(file.name, key, f"is {found.get(key)}, expected {expected.get(key)}")
    if expected == found and header.digest != hashlib.sha256(file.header).hexdigest():
        yield Damage(file.name, "", "the header is not the one that was written")


def _records_of(file: FilePlan, manifest: Manifest) -> Iterator[Damage]:
    """The manifest's description of a file's weights against the plan."""
    for target in file.targets:
        tensor = manifest.tensors.get(target.weight.name)
        if tensor is None:
            continue
        parts = {part: placed.key for part, placed in target.parts.items()}
        same = (tensor.file, tensor.format, tensor.shape) == (file.name, target.format, target.weight.shape)
        if not same or tensor.parts != parts or tensor.digests.keys() != parts.keys():
            yield Damage(MANIFEST, target.weight.name, "is not described as config and recipe demand")
    if file.records is not None and file.records.prefix in manifest.experts:
        table, records = manifest.experts[file.records.prefix], file.records
        found = (
            table.file,
            table.format,
            table.count,
            table.record_bytes,
            table.segments,
            len(table.digests),
        )
        count = len(records.experts)
        if found != (file.name, records.format, count, records.record_bytes, records.segments, count):
            yield Damage(
                MANIFEST,
                f"{records.prefix}.ffn.experts",
                "is not described as config and recipe demand",
            )


def contents(
    model: Path, source: Source | None, plan: ConversionPlan, manifest: Manifest, unsound: set[str],
    errors: dict[str, PartError], progress: Progress | None, block: int,
) -> list[Damage]:  # fmt: skip
    """Hash, and compare if there is a source, every weight and record of the files that are sound."""
    damage: list[Damage] = []
    done = 0
    with FolderReader(model) as reader, ExitStack() as stack:
        official = None if source is None else stack.enter_context(SourceReader(source))
        comparison = Comparison(reader, official, block)
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        stack.callback(pool.shutdown, cancel_futures=True)  # runs first: an error doesn't wait for the queue
        for file in plan.files:
            if file.name in unsound:
                continue
            # One file at a time, so that damage comes in order and little is queued.
            weights = [
                pool.submit(comparison.weight, file.name, t, manifest.tensors[t.weight.name].digests)
                for t in file.targets
            ]
            experts = []
            if file.records is not None:
                digests = manifest.experts[file.records.prefix].digests
                experts = [
                    pool.submit(comparison.record, file.name, file.records, number, digest)
                    for number, digest in enumerate(digests)
                ]
            for target, future in zip(file.targets, weights, strict=True):
                found, deviation = future.result()
                damage += found
                if source is not None and not found:
                    _worse(errors, target.weight.part, target.weight.name, deviation)
            for expert in experts:
                found, deviations = expert.result()
                damage += found
                for name, deviation in deviations.items():
                    _worse(errors, "experts", name, deviation)
            if source is not None and experts:
                errors.setdefault("experts", PartError(0.0, 0.0, ""))
            done += file.size
            if progress is not None:
                progress(done, plan.bytes, file.name)
    return damage


def _worse(errors: dict[str, PartError], part: str, name: str, deviation: Deviation) -> None:
    """Keep the worst of a component's weights."""
    known = errors.get(part, PartError(0.0, 0.0, ""))
    worse = deviation.relative > known.relative
    errors[part] = PartError(
        deviation.relative if worse else known.relative,
        max(known.relative_worst, deviation.relative_worst),
        name if worse else known.weight,
    )
