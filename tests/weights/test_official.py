"""An official folder as the model: the same arrays as a conversion to `native`, the same refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint.damage import poke
from checkpoint.hostile import CASES, Case
from checkpoints import Checkpoints, run, same_bits
from mlx.utils import tree_flatten

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import Dsv4Error, InputError, UsageError
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import NUMERICS, REFERENCE
from dsv4_mlx.weights.load import find_model, open_model
from dsv4_mlx.weights.official import OfficialModel
from dsv4_mlx.weights.records import OfficialRecordMap

TOKENS = [0, 5, 9, 300, 17, 4, 4, 639, *range(80)]


def opened(folder: Path, numerics: str = "official") -> Transformer:
    return open_model(find_model(folder), REFERENCE, NUMERICS[numerics]).model


def bits(array: mx.array) -> Any:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).view(np.uint8)


def arrays_of(model: Transformer) -> dict[str, mx.array]:
    """Every array of the model, the expert banks included."""
    pairs: Any = tree_flatten(model.parameters())  # type: ignore[no-untyped-call]
    found = {name: value for name, value in pairs if isinstance(value, mx.array)}
    for number, block in enumerate(model.blocks):
        found[f"records.{number}"] = block.ffn.experts.records  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("name", ["small", "awkward", "0731", "awkward base", "wide base"])
def test_arrays_are_those_of_a_conversion(checkpoints: Checkpoints, name: str) -> None:
    ours = arrays_of(opened(checkpoints.official(name)))
    theirs = arrays_of(opened(checkpoints.converted(name)))
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for key, expected in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (expected.dtype, expected.shape), key
        assert np.array_equal(bits(ours[key]), bits(expected)), key


@pytest.mark.parametrize("numerics", ["official", "exact"])
def test_logits_are_those_of_a_conversion(checkpoints: Checkpoints, numerics: str) -> None:
    ours, theirs = (
        run(opened(folder, numerics), TOKENS, cuts=(37, 86, 87))
        for folder in (checkpoints.official("small"), checkpoints.converted("small"))
    )
    assert same_bits([ours], [theirs])


@pytest.mark.parametrize(
    ("memory", "threads"),
    [
        ("1x", 8),
        ("25%", 1),
        ("100%", 8),
        *(pytest.param(*way, marks=pytest.mark.long) for way in (("1x", 1), ("25%", 8), ("100%", 1))),
    ],
)
@pytest.mark.parametrize("name", ["small", "wide base"])
def test_paged_from_an_official_folder(
    name: str, checkpoints: Checkpoints, memory: str, threads: int
) -> None:
    """Six ranges of an expert, read into a slot, are the record that the converter writes."""
    resident = run(opened(checkpoints.converted(name)), TOKENS)
    options = EngineOptions(context=1024, expert_memory=memory, expert_threads=threads)
    engine = Engine.open(checkpoints.official(name), options)
    assert (engine.pager is None) == (memory == "100%")
    assert same_bits([run(engine.model, TOKENS)], [resident])


@pytest.mark.parametrize("name", ["awkward", "awkward base", "wide base"])
def test_ranges_put_together_are_the_stored_records(name: str, checkpoints: Checkpoints) -> None:
    official, converted = (
        find_model(folder) for folder in (checkpoints.official(name), checkpoints.converted(name))
    )
    for block in converted.manifest.experts:
        ours, theirs = official.record_map(block), converted.record_map(block)
        assert isinstance(ours, OfficialRecordMap) and not isinstance(theirs, OfficialRecordMap)
        assert len(ours.ranges[0]) == 6
        assert ours.record_bytes == theirs.record_bytes and ours.count == theirs.count
        for expert in range(ours.count):
            records = []
            for source in (ours, theirs):
                record = bytearray(source.record_bytes)
                for part in source.ranges[expert]:
                    with source.files[part.file].open("rb") as file:
                        file.seek(part.offset)
                        record[part.at : part.at + part.bytes] = file.read(part.bytes)
                source.finish(expert, memoryview(record))
                records.append(bytes(record))
            assert records[0] == records[1], (block, expert)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_checkpoint(case: Case, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """What the converter refuses is refused here, in the same words."""
    folder = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "source"))
    case.damage(folder)
    with pytest.raises(Dsv4Error) as caught:
        opened(folder)
    assert case.says in str(caught.value) and caught.value.exit_code == case.exit_code


def test_a_bad_scale_is_found_when_its_expert_is_read(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "source"))
    for expert in range(find_model(folder).config.experts):
        poke(folder, f"layers.5.ffn.experts.{expert}.w3.scale", 255, at=7)
    engine = Engine.open(folder, EngineOptions(context=64, expert_memory="2x"))
    with pytest.raises(InputError, match=r"up_scales of expert \d+ hold the scale byte 255"):
        engine.session().sync([1, 2, 3])


def test_reads_of_an_official_folder_have_no_digests(checkpoints: Checkpoints) -> None:
    options = EngineOptions(context=64, expert_memory="2x", verify_reads=True)
    with pytest.raises(UsageError, match="no digests"):
        Engine.open(checkpoints.official("small"), options)


def test_a_shard_that_changes_while_it_is_read(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "source"))
    stored, shard = find_model(folder), sorted(folder.glob("model-*"))[1]

    def touch(done: int, total: int) -> None:
        os.utime(shard)

    with pytest.raises(InputError, match="was changed while it was read"):
        open_model(stored, REFERENCE, NUMERICS["exact"], touch)
    os.truncate(shard, 5000)
    with pytest.raises(Dsv4Error, match="size has changed"):
        open_model(stored, REFERENCE, NUMERICS["exact"])


def test_progress_counts_bytes(checkpoints: Checkpoints) -> None:
    seen: list[tuple[int, int]] = []
    stored = find_model(checkpoints.official("small"))
    open_model(stored, REFERENCE, NUMERICS["exact"], lambda *step: seen.append(step))
    shards = sum(path.stat().st_size for path in stored.folder.glob("*.safetensors"))
    done = [step[0] for step in seen]
    assert done == sorted(done) and seen[-1] == (shards, shards) and len(seen) > 100


def test_what_is_said_of_it(checkpoints: Checkpoints) -> None:
    stored = find_model(checkpoints.official("0731"))
    assert isinstance(stored, OfficialModel)
    assert (stored.manifest.recipe, stored.manifest.checkpoint) == ("official", "0731")
    converted = find_model(checkpoints.converted("0731"))
    assert stored.manifest.tensors.keys() == converted.manifest.tensors.keys()
    assert stored.manifest.source == converted.manifest.source, "the same weights, the same identity"
    formats = {name: record.format for name, record in stored.manifest.tensors.items()}
    assert formats == {name: record.format for name, record in converted.manifest.tensors.items()}


def test_a_conversion_in_a_folder_wins(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A manifest says what a folder is, whatever else lies there."""
    folder = Path(shutil.copytree(checkpoints.converted("small"), tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text("{}")
    assert find_model(folder).manifest.recipe == "native"
