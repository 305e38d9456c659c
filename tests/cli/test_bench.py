"""`bench`: what is measured, what is printed, and that it never passes for a Mac's."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_run import tiny_engine
from small_model import tiny_config

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.cli.main import run
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.memory import touched_state, touched_weights
from dsv4_mlx.errors import UsageError
from dsv4_mlx.evaluation.throughput import Spread, check_plan, frontiers, random_prompt
from dsv4_mlx.weights.load import find_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    tiny_engine(path, 256)
    return path / "converted"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    from dsv4_mlx.engine.engine_options import EngineOptions

    return Engine.open(folder, EngineOptions(context=256))


def test_figures_follow_from_the_clock(engine: Engine) -> None:
    """A scripted clock: per pass and context it is read at start, ready, drawn, decode begun, decode done."""
    warm_up = [0.0] * 5
    readings = list(warm_up)
    for slow in (1.0, 4.0, 2.0):  # three passes; the median is the third
        readings += [10.0, 10 + slow, 10.5 + slow, 20.0, 20 + 2 * slow]  # 40 tokens in `slow` seconds
        readings += [30.0, 30 + 3 * slow, 30.25 + 3 * slow, 50.0, 50 + 4 * slow]  # 20 more in 3 * slow
    clock: Iterator[float] = iter(readings)
    first, second = frontiers(engine, [40, 60], 8, clock=lambda: next(clock))
    assert next(clock, None) is None
    assert (first.context, first.prefilled, second.context, second.prefilled) == (40, 40, 60, 20)
    assert first.prefill == Spread(20, 10, 40)
    assert second.prefill == Spread(20 / 6, 20 / 12, 20 / 3)
    assert first.decode == Spread(2, 1, 4)
    assert second.decode == Spread(1, 0.5, 2)
    assert first.first_token == Spread(2.5, 1.5, 4.5)
    # Both prefills, but only the last draw: earlier draws are no part of a prompt of 60 tokens.
    assert second.first_token == Spread(8.25, 4.25, 16.25)
    assert 0 < first.active <= first.peak


def test_the_prompt_is_the_same_each_time_and_plain(engine: Engine) -> None:
    prompt = random_prompt(engine, 500)
    assert prompt == random_prompt(engine, 500)
    assert prompt[:100] == random_prompt(engine, 100)
    assert not set(prompt) & set(vars(engine.prompts.markers).values())
    assert len(prompt) == 500


def test_bytes_per_token_from_shapes(folder: Path) -> None:
    config = tiny_config()
    windows = 3 * 32 * 32 * 4
    csa = 40 * 32 * 4 + 8 * 32 * 4  # 40 index rows scored, 8 rows picked
    assert touched_state(config, 160, 4) == windows + csa + 32 * 4
    assert touched_state(config, 16, 4) == 3 * 16 * 32 * 4 + 4 * 32 * 4  # few rows: none is scored
    manifest = read_manifest(folder)
    sizes = find_model(folder).tensor_bytes()
    idle = sum(table.record_bytes * (table.count - 2) for table in manifest.experts.values())
    tables = sizes["embed.weight"] + sizes["layers.0.ffn.gate.tid2eid"]
    whole = sum(sizes.values()) + sum(t.record_bytes * t.count for t in manifest.experts.values())
    unread = tables * (config.vocab_size - 1) // config.vocab_size
    assert touched_weights(config, manifest, sizes) == whole - idle - unread


def test_table_says_what_machine_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(folder), "--context", "8,24", "--decode", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("context\tprefill tok/s\tdecode tok/s")
    assert [line.split("\t")[0] for line in out[1:3]] == ["8", "24"]
    assert "median of 3 passes" in out[3]
    assert out[4].startswith("measured on: ")


def test_another_machine_is_not_called_a_mac(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mlx.core.metal.is_available", lambda: False)
    plot = tmp_path / "speed.svg"
    command = ["bench", str(folder), "--context=8,24", "--decode=2", "--json", "--plot", str(plot)]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mac"] is False
    assert "not a Mac" in found["machine"]
    assert [one["context"] for one in found["frontiers"]] == [8, 24]
    for one in found["frontiers"]:
        assert set(one["memory_bytes"]) == {"active", "peak", "cache"}
        assert one["bytes_per_token"]["weights"] > one["bytes_per_token"]["state"] > 0
        for key in ("prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds"):
            assert 0 < one[key]["low"] <= one[key]["median"] <= one[key]["high"]
    drawn = ElementTree.parse(plot)
    text = " ".join(drawn.getroot().itertext())
    assert "not a Mac" in text
    assert "Prefill" in text
    assert len(drawn.getroot().findall(".//{*}polyline")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context", "24,8"], "expected growing numbers"),
        (["--context", "8,8"], "expected growing numbers"),
        (["--context", "0,8"], "expected growing numbers"),
        (["--context", "8;9"], "commas"),
        (["--context", "8,"], "commas"),
        (["--context", "9999999"], "expected 1 to"),
        (["--decode", "0"], "--decode"),
        (["--plot", "no/such/folder/x.svg"], "no folder"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_loaded(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(folder), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


def test_a_plan_must_fit_the_context() -> None:
    check_plan([10], 6, 16)
    with pytest.raises(UsageError, match="need a context of 17"):
        check_plan([10], 7, 16)
    with pytest.raises(UsageError, match="growing"):
        check_plan([], 1, 16)


def test_the_smallest_plan_fits_its_own_context(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is decoded before anything is measured needs no more room than what is measured."""
    assert run(["bench", str(folder), "--context", "1", "--decode", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frontiers"][0]["context"] == 1
