"""`demo` as MODEL, and the checkpoint that the package carries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from deepseek_recipe import Conversation, ToolDefinition, UserMessage

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.cli.demo import program
from dsv4_mlx.config import CSA, HCA, WINDOW, ModelConfig
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.generate import answer, generate
from dsv4_mlx.hub.models import MODEL_ID, SHIPPED, build, model_folder
from dsv4_mlx.tokenizer.output_parser import Piece, TextParser

QUESTION = "What is the sliding window?"
ANSWER = "Each token sees the last 128 tokens in full."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.open(build(tmp_path_factory.mktemp("demo")).model, EngineOptions())


def test_demo_is_a_model_and_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a folder named demo here would be taken instead
    folder = model_folder("demo")
    assert folder.name == MODEL_ID
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert model_folder("demo") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert read_manifest(folder).recipe == "native"


def test_the_demo_says_what_to_type_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After `make demo` the command is not in reach by its name: the path that was typed is."""
    called = tmp_path / "bin" / "dsv4-mlx"
    called.parent.mkdir()
    called.write_text("#!/bin/sh\n")
    called.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bin/dsv4-mlx", "demo"])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert program() == "bin/dsv4-mlx"
    monkeypatch.setenv("PATH", f"/usr/bin:{called.parent}")
    assert program() == "dsv4-mlx"
    monkeypatch.setattr("sys.argv", ["somewhere/dsv4_mlx/__main__.py", "demo"])
    assert program().endswith(" -m dsv4_mlx")


@pytest.mark.parametrize(
    ("statement", "rooms"),
    (
        ("from dsv4_mlx.hub.models import model_folder; model_folder('demo')", ("convert", "machine.disks")),
        ("from dsv4_mlx.cli.generate import rule_of; rule_of(None, None)", ("grammar",)),
    ),
)
def test_what_is_not_needed_is_not_imported(statement: str, rooms: tuple[str, ...]) -> None:
    """With the demo built, and with no form to hold an answer to."""
    model_folder("demo")
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "dsv4_mlx" in loaded.split()
    assert not [name for name in loaded.split() for room in rooms if name.startswith(f"dsv4_mlx.{room}")]


def test_damage_is_found_and_repaired(tmp_path: Path) -> None:
    model = build(tmp_path).model
    victim = next(path for path in sorted(model.iterdir()) if path.suffix == ".safetensors")
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    again = build(tmp_path)
    assert not again.reused and victim.read_bytes() == good


def test_the_shipped_checkpoint_has_the_whole_architecture_in_eight_megabytes() -> None:
    config = ModelConfig.read(SHIPPED)
    assert {WINDOW, CSA, HCA} == set(config.kinds) and config.mtp_layers == 1
    assert 0 < config.hash_layers < config.layers and config.streams == 4
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8_000_000


def test_it_answers_in_every_mode(model: Engine) -> None:
    """A fact from its training, greedy: thinks as told, longer in max, and stops by itself."""
    lengths = {}
    for think in ("off", "on", "max"):
        session, options = model.session(), SamplingOptions(temperature=0.0)
        pieces = list(answer(model, session, QUESTION, think, options, max_tokens=300))
        said = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "answer")}
        assert said["answer"] == ANSWER, think
        lengths[think] = len(said["thinking"])
    assert lengths["off"] == 0 < lengths["on"] < lengths["max"]


def test_it_calls_a_tool(model: Engine) -> None:
    """One call in the official syntax, with an argument that no training text holds."""
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = ToolDefinition("get_weather", "The weather in a city.", city)
    conversation = Conversation(
        [UserMessage("What is the weather in Faldor?")], thinking_mode=False, tools=[tool]
    )
    prompt = model.prompts.encode(conversation)
    parser = TextParser(conversation, model.prompts.spelling)
    pieces: list[Piece] = []
    for token in generate(model.session(), prompt, SamplingOptions(temperature=0.0), max_tokens=100):
        pieces += parser.push(token)
    pieces += parser.finish(length=False)
    called = "".join(piece.text for piece in pieces if piece.kind == "tool")
    assert called.startswith("get_weather")
    assert json.loads(called.removeprefix("get_weather")) == {"city": "Faldor"}
