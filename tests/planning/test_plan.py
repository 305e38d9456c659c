"""`plan`: bytes as the converter then writes them, memory as the engine then allows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint.decoding import official_tensors
from checkpoints import Checkpoints
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.cli.main import run
from dsv4_mlx.config import parse_config
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine import engine
from dsv4_mlx.engine.engine import fitting, weight_bytes
from dsv4_mlx.engine.memory import state_bytes, touched_weights, workspace
from dsv4_mlx.model.state import GROWTH
from dsv4_mlx.planning.candidates import candidates, candidates_for, flash_config
from dsv4_mlx.planning.fit import MemoryBudget, budget_of_mac, fit
from dsv4_mlx.planning.plan import disk, plan, with_more_memory
from dsv4_mlx.planning.speed import Speeds
from dsv4_mlx.synthetic import cut, release_config, small_config, write_checkpoint
from dsv4_mlx.weights.load import activation_dtype, find_model

FLASH = candidates(flash_config())
CONFIG = flash_config()
GIB = 1 << 30


def every_file(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def weights_of(folder: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]


def no_draft_block() -> dict[str, Any]:
    config = small_config()
    layers = config["num_hidden_layers"]
    return config | {"num_nextn_predict_layers": 0, "compress_ratios": config["compress_ratios"][:layers]}


def dspark() -> dict[str, Any]:
    """The weights of April with the drafter of 0731: no expert_dtype, no n_mtp_layers in its config."""
    config = cut(release_config("0731"), layers=4, experts=4)
    return {key: value for key, value in config.items() if key not in ("expert_dtype", "n_mtp_layers")}


SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    "april": small_config,
    "april without draft block": no_draft_block,
    "base": lambda: cut(release_config("base"), layers=4, experts=4),
    "0731": lambda: cut(release_config("0731"), layers=4, experts=4),
    "dspark": dspark,
    "pro": lambda: cut(release_config("pro"), layers=4, experts=4),
}


@pytest.fixture(scope="module", params=SHAPES)
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shape") / "official"
    write_checkpoint(folder, SHAPES[request.param](), 0)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_are_those_of_the_files(official: Path, recipe: str, tmp_path: Path) -> None:
    """From the folder every file, from the config alone the weights; and what a token reads."""
    found, config = candidates_for(official)
    ways = {way.name: way for way in found}
    derived = {way.name: way for way in candidates(config)}
    convert(official, tmp_path / "out", recipe)
    assert derived[recipe].stored.bytes == ways[recipe].stored.bytes == sum(weights_of(tmp_path / "out"))
    assert disk(ways[recipe], here=True).kept == every_file(tmp_path / "out")
    assert disk(ways["official"], here=True).kept == every_file(official)
    assert ways["official"].shards == tuple(weights_of(official))
    stored = find_model(tmp_path / "out")
    touched = touched_weights(config, stored.manifest, stored.tensor_bytes())
    assert ways[recipe].touched == touched
    after = candidates_for(tmp_path / "out")[0][0]
    assert after.stored == ways[recipe].stored and disk(after, here=True).kept == every_file(tmp_path / "out")
    whole = find_model(official)
    assert ways["official"].touched == touched_weights(config, whole.manifest, whole.tensor_bytes())


def test_scales_repeated_in_memory_are_counted(official: Path, tmp_path: Path) -> None:
    """By the plan and by the engine: as many bytes as a conversion writes them to disk."""
    way = candidates_for(official)[0][0].stored
    stored = find_model(official).manifest
    convert(official, tmp_path / "out")
    made = read_manifest(tmp_path / "out")
    dense = [t.parts["scales"] for t in made.tensors.values() if t.format == "mxfp8"]
    sizes = {name: len(data) for name, (_, _, data) in official_tensors(tmp_path / "out").items()}
    records = [t for t in made.experts.values() if t.format == "mxfp8"]
    scales = sum(sizes[key] for key in dense) + sum(
        t.count * s.bytes for t in records for s in t.segments if s.dtype == "U8"
    )
    assert scales and weight_bytes(stored) == sum(weights_of(official)) + scales
    for found, manifest in ((way, stored), (candidates_for(tmp_path / "out")[0][0].stored, made)):
        experts = sum(t.count * t.record_bytes for t in manifest.experts.values())
        assert found.others == weight_bytes(manifest) - experts, "as the engine sees it"


def test_experts_of_a_drafter_need_no_memory() -> None:
    """0731 has three blocks of them, 10 GB, in place of the one of April."""
    config = parse_config(json.dumps(release_config("0731", true_size=True)), "0731")
    for way, april in zip(candidates(config), FLASH, strict=True):
        assert way.stored.bytes > april.stored.bytes + 7e9
        assert way.stored.memory < april.stored.memory
        assert way.stored.others == pytest.approx(april.stored.others, rel=0.08)


def test_base_at_its_true_size() -> None:
    config = parse_config(json.dumps(release_config("base", true_size=True)), "base")
    way, native = (way.stored for way in candidates(config)[:2])
    small = next(way for way in candidates(config) if way.name == "4bit")
    assert small.written is not None and small.written.quantised > 0.95 * small.stored.bytes
    assert way.bytes + 8e9 < way.memory < native.bytes * 1.001
    least = way.memory + workspace(way.memory) + state_bytes(config, GROWTH, 2).session
    assert fit(way, config, MemoryBudget(least)).placement == "resident"
    paged = fit(way, config, MemoryBudget(least - 1))
    assert paged.placement == "paged" and paged.slots < config.experts
    assert 0 <= way.others - native.others < 0.02 * native.others


def test_the_release_is_the_published_one() -> None:
    official = FLASH[0]
    assert (official.name, official.stored.bytes, len(official.shards)) == ("official", 159_609_485_896, 46)
    assert [way.name for way in FLASH] == ["official", *RECIPES]


def test_disk_at_every_moment() -> None:
    found = {o.name: o.disk for o in plan(FLASH, CONFIG, MemoryBudget(48 * GIB), Speeds()).options}
    native, official = found["native"], found["official"]
    assert native.peak == native.download + native.kept
    assert native.kept < native.peak_deleting < native.kept + native.download / 20
    assert official.peak == official.kept == official.download == official.peak_deleting
    here = {o.name: o.disk for o in plan(FLASH, CONFIG, MemoryBudget(48 * GIB), Speeds(), "/m").options}
    assert here["native"].download == 0 and here["native"].peak == native.kept


@given(st.integers(1, 600), st.integers(0, 600))
def test_more_memory_is_never_worse(gib: int, more: int) -> None:
    speeds = Speeds(4e11, 5e9, 3e7)
    less = plan(FLASH, CONFIG, MemoryBudget(gib * GIB), speeds)
    for small, large in zip(
        less.options, plan(FLASH, CONFIG, MemoryBudget((gib + more) * GIB), speeds).options, strict=True
    ):
        assert large.fit.slots >= small.fit.slots
        if small.prediction is None:
            continue
        assert large.prediction is not None
        low, high = small.prediction.low, small.prediction.high
        assert low is not None and high is not None and low <= high <= speeds.memory / small.touched  # type: ignore[operator]
        assert large.prediction.high >= high * 0.999  # type: ignore[operator]
        assert small.prediction.missed[0] >= small.prediction.missed[1]


def test_a_speed_that_is_not_known_predicts_nothing() -> None:
    for option in plan(FLASH, CONFIG, MemoryBudget(64 * GIB), Speeds(memory=4e11)).options:
        assert option.fit.placement == "paged"
        assert option.prediction is not None and option.prediction.low is None
        assert option.download_seconds is None
    resident = plan(FLASH, CONFIG, MemoryBudget(300 * GIB), Speeds(memory=4e11, network=1e7)).options[1]
    assert resident.prediction is not None and resident.prediction.low == resident.prediction.high
    assert resident.download_seconds == pytest.approx(159_609_485_896 / 1e7)


@pytest.mark.parametrize(
    ("gib", "best", "words"),
    [
        (4, None, []),
        (48, "native", ["--delete-source", "--expert-memory"]),
        (300, "native", ["--context 131072"]),
    ],
)
def test_what_to_type(gib: int, best: str | None, words: list[str]) -> None:
    found = plan(FLASH, CONFIG, MemoryBudget(gib * GIB), Speeds())
    assert found.best == best
    commands = [c for option in found.options if option.name == best for c in option.commands]
    assert all(any(word in command for command in commands) for word in words)


@pytest.mark.parametrize("kind", ["official", "converted"])
def test_slots_are_those_that_auto_takes(
    checkpoints: Checkpoints, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan`, `info` and `--expert-memory auto`, at every limit, with and without a reserve and others."""
    folder = getattr(checkpoints, kind)("small")
    stored = find_model(folder)
    way = candidates_for(folder)[0][0].stored
    state = state_bytes(stored.config, 4096, activation_dtype().size).session
    seen = set()
    one = way.experts.bytes(1)
    for reserve, taken in ((0, 0), (one, 0), (0, one), (one, 3 * one)):
        monkeypatch.setattr(engine, "page_cache_share", lambda reserve=reserve: reserve)
        monkeypatch.setattr(engine, "others_share", lambda taken=taken: taken)
        for step in range(-4, 45):
            limit = way.others + workspace(way.others) + state + step * way.experts.bytes(1) // 4
            monkeypatch.setattr(engine, "memory_limit", lambda limit=limit: limit)
            found = fit(
                way, stored.config, MemoryBudget(limit, activation_dtype().size, reserve, taken=taken)
            )
            if found.placement == "too large":
                continue
            memory = fitting(stored.config, stored.manifest, found.context, "auto")[1]
            assert memory.slots == found.slots
            assert fitting(stored.config, stored.manifest, found.context, f"{found.slots}x")[1] is not None
            seen.add(found.slots)
    assert len(seen) > 2, seen


def test_slots_of_a_large_mac() -> None:
    """V4-Flash on 128 GB: the room is used to the last slot, by the memory that this many slots need."""
    for gib in (24, 48, 96, 107):
        for way in FLASH:
            found = fit(way.stored, CONFIG, MemoryBudget(gib * GIB))
            if found.placement == "paged":
                need = [way.stored.others + way.stored.experts.bytes(found.slots + more) for more in (0, 1)]
                state = state_bytes(CONFIG, found.context, 2).session
                fits = [weights + workspace(weights) + state <= gib * GIB for weights in need]
                assert fits == [True, False]


def test_the_command_line(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--for", "64GB", "--bandwidth", "400GB", "--disk", "5GB"]) == 0
    out = capsys.readouterr().out
    assert "best here: native" in out and "predicted" in out and "dsv4-mlx convert deepseek-ai/" in out
    assert run(["plan", "--for", "64GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["limit"] == 48 * GIB and "nothing was run" in found["predicted"]
    for name in ("official", "converted"):
        folder = getattr(checkpoints, name)("small")
        assert run(["plan", str(folder), "--for", "64GB", "--json"]) == 0
        options = {o["name"]: o for o in json.loads(capsys.readouterr().out)["options"]}
        assert options["native"]["disk"]["kept"] == every_file(checkpoints.converted("small"))
        assert all(o["disk"]["download"] == 0 and o["fit"]["how"] == "resident" for o in options.values())


def test_info_says_the_same(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("official", "converted"):
        folder = str(getattr(checkpoints, name)("small"))
        assert run(["info", folder, "--json"]) == 0
        here = json.loads(capsys.readouterr().out)["here"]
        assert here["how"] == "resident" and here["slots"] == checkpoints.parsed("small").experts
        assert run(["info", folder]) == 0
        assert "here: resident" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--for", "64x"],
        ["--for", "0GB"],
        ["--for", "64Gb"],
        ["--network", "100Mb/s"],
        ["--bandwidth", "0GB/s"],
        ["--disk", "fast"],
        ["no-such-folder"],
        ["--for", "8 bits"],
    ],
)
def test_wrong_words_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("gib", "said"),
    [
        (64, []),  # macOS 26 isn't known to give such a Mac more, and raising would not end paging
        (128, ["with macOS 26 a model may use 115.4 GB: official paged, 175 experts a layer"]),
        (
            192,
            ["with macOS 26 a model may use 173.2 GB: official resident", "iogpu.wired_limit_mb=167116"],
        ),
        (512, []),
    ],
)
def test_macos_26_and_a_raised_limit_are_said(gib: int, said: list[str]) -> None:
    found = with_more_memory(FLASH, CONFIG, gib * GIB, budget_of_mac(gib * GIB))
    assert len(found) == len(said), found
    assert all(part in sentence for part, sentence in zip(said, found, strict=True)), found
    assert not any("iogpu" in sentence and "paged" in sentence for sentence in found)
