"""Sampling options of `generate`: what the command line passes on, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv4_mlx.cli.main import run
from dsv4_mlx.cli.option_groups import parse_biases
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import UsageError
from dsv4_mlx.synthetic.tokenizer import tokenizer_json
from dsv4_mlx.tokenizer.output_parser import TextParser
from dsv4_mlx.tokenizer.template import Prompts


def test_every_knob_reaches_the_sampler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[SamplingOptions] = []

    def answer(*arguments: Any, **more: Any) -> Iterator[Any]:
        seen.append(arguments[4])
        return iter(())

    monkeypatch.setattr(import_module("dsv4_mlx.engine.generate"), "answer", answer)

    monkeypatch.setattr("dsv4_mlx.engine.info.vocabulary", lambda folder: 640)

    class NoEngine:
        expert_memory = ""
        context = 16
        config = SimpleNamespace(vocab_size=8)

        def session(self) -> SimpleNamespace:
            return SimpleNamespace(tokens=[], markers=SimpleNamespace(end=1))

    monkeypatch.setattr(Engine, "open", staticmethod(lambda *arguments: NoEngine()))
    options = {
        "--temperature": ["0.5"],
        "--top-p": ["0.9"],
        "--top-k": ["40"],
        "--min-p": ["0.02"],
        "--repetition-penalty": ["1.1"],
        "--presence-penalty": ["0.2"],
        "--frequency-penalty": ["-0.3"],
        "--logit-bias": ["17=-2.5", "4=1"],
        "--stop": ["END", "##"],
        "--stop-id": ["9", "8"],
        "--seed": ["5"],
    }
    words = [word for option, values in options.items() for value in values for word in (option, value)]
    assert run(["generate", str(tmp_path), "-p", "x", *words]) == 0, capsys.readouterr().err
    assert seen == [
        SamplingOptions(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.02,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=-0.3,
            logit_bias={17: -2.5, 4: 1.0},
            seed=5,
            stop_ids=frozenset({8, 9}),
            stop_strings=("END", "##"),
        )
    ]


@pytest.mark.parametrize("pair", ("17", "=1", "x=1", "17=", "17=y", "1.5=2", "１７=1", "17=１"))
def test_a_bias_must_be_a_pair(pair: str) -> None:
    with pytest.raises(UsageError, match="expected ID=VALUE"):
        parse_biases([pair])


@pytest.mark.parametrize("option", ("--top-p=0", "--top-k=-1", "--min-p=2", "--stop=", "--logit-bias=1=nan"))
def test_impossible_values_exit_with_2(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", str(tmp_path), "-p", "x", option]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(tokenizer_json(640), encoding="utf-8")
    return Prompts(folder, "april")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("one STOP two", "one "),
        ("one STO STOX", "one STO STOX"),  # what only begins like a stop is given out in the end
        ("STOP", ""),
        ("é STOPSTOP", "é "),
    ],
)
def test_a_stop_string_split_over_tokens(prompts: Prompts, text: str, answer: str) -> None:
    """Fed byte by byte, so that no token holds all of it."""
    parser = TextParser(prompts.ask("x", "off"), prompts.spelling, ["STOP"])
    said = []
    for character in text:
        for token in prompts.tokenizer.encode(character):
            if not parser.over:
                said += [piece.text for piece in parser.push(token)]
    assert parser.over == ("STOP" in text)
    said += [piece.text for piece in parser.finish(length=False)]
    assert "".join(said) == answer


def test_a_stop_string_in_the_thinking_does_not_stop(prompts: Prompts) -> None:
    parser = TextParser(prompts.ask("x", "on"), prompts.spelling, ["STOP"])
    tokens = [
        *prompts.tokenizer.encode("a STOP"),
        prompts.markers.end_think,
        *prompts.tokenizer.encode("b STOP c"),
    ]
    pieces = [piece for token in tokens if not parser.over for piece in parser.push(token)]
    assert "".join(piece.text for piece in pieces if piece.kind == "thinking") == "a STOP"
    assert "".join(piece.text for piece in pieces if piece.kind == "answer") == "b "
