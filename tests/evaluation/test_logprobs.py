"""Stored log-probabilities: a file made by the numpy model is agreed with; wrong and hostile ones are not."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.acceptance_helpers import quiet
from oracle.numpy_model import NumpyModel
from oracle.official import OfficialCheckpoint

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import InputError
from dsv4_mlx.evaluation.logprobs import compared, read
from dsv4_mlx.hub.models import SHIPPED

QUESTION = "What is the sliding window?"
VOCABULARY = 1792


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine.open(SHIPPED, EngineOptions(numerics="official"))


@pytest.fixture(scope="module")
def stored(demo: Engine) -> dict[str, Any]:
    """What the numpy model, in float64 with the official rounding, says of a question and its answer."""
    source = OfficialCheckpoint(SHIPPED)
    config = json.loads((SHIPPED / "config.json").read_text())
    model = NumpyModel(config, {key: source[key] for key in source}, "official")
    session = demo.session()
    ids = demo.prompts.encode(demo.prompts.ask(QUESTION, "off"))
    begin = len(ids)
    for _ in range(12):
        ids.append(int(session.sync(ids).argmax()))
    logits = np.asarray(model.logits(np.array(ids)), np.float64)
    log = logits - logits.max(-1, keepdims=True)
    log -= np.log(np.exp(log).sum(-1, keepdims=True))
    rows = [
        {"position": p, "token": int(log[p - 1].argmax()), "logprob": float(log[p - 1].max())}
        for p in range(begin, len(ids) + 1)
    ]
    return {"source": "the numpy model", "prompts": [{"ids": ids, "rows": rows}]}


@pytest.fixture
def written(stored: dict[str, Any], tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """The stored file after a change."""

    def write(change: Callable[[Any], object]) -> Path:
        raw = copy.deepcopy(stored)
        change(raw)
        path = tmp_path / "logprobs.json"
        path.write_text(json.dumps(raw))
        return path

    return write


def row(raw: Any) -> Any:
    return raw["prompts"][0]["rows"][0]


def test_what_another_implementation_says_is_agreed_with(demo: Engine, written: Any) -> None:
    step = compared(demo, read(written(lambda raw: None), VOCABULARY), quiet)
    assert (step.ok, step.found) == (True, ())
    assert step.figures["positions"] == 13
    assert step.figures["same_best_token"] == 1
    assert isinstance(step.figures["largest"], float) and step.figures["largest"] < 1e-3


def test_other_tokens_are_found(demo: Engine, written: Any) -> None:
    def change(raw: Any) -> None:
        for entry in raw["prompts"][0]["rows"][:2]:
            entry["token"] += 1

    step = compared(demo, read(written(change), VOCABULARY), quiet)
    assert step.ok is False
    assert "the stored one at 84.6% of 13 positions, expected 90% at least" in step.found[0]


def test_other_probabilities_are_found(demo: Engine, written: Any) -> None:
    def change(raw: Any) -> None:
        for entry in raw["prompts"][0]["rows"]:
            entry["logprob"] -= 0.3

    step = compared(demo, read(written(change), VOCABULARY), quiet)
    assert step.ok is False
    assert step.found[0].startswith("log-probabilities differ by 0.300 on average")


def test_a_prompt_longer_than_the_context_is_not_asked(demo: Engine, written: Any) -> None:
    short = Engine(demo.config, demo.manifest, demo.model, demo.prompts, 8)
    step = compared(short, read(written(lambda raw: None), VOCABULARY), quiet)
    assert step.ok is None


HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "no prompts": (lambda raw: raw.pop("prompts"), '"prompts", a list that is not empty'),
    "none": (lambda raw: raw["prompts"].clear(), '"prompts", a list that is not empty'),
    "a number": (lambda raw: raw["prompts"].insert(0, 7), 'prompt 0: expected "ids" and "rows"'),
    "no rows": (lambda raw: raw["prompts"][0]["rows"].clear(), 'prompt 0: expected "ids" and "rows"'),
    "a token beyond": (lambda raw: raw["prompts"][0]["ids"].append(1792), "1792 is not a token id from 0"),
    "true is no id": (lambda raw: raw["prompts"][0]["ids"].append(True), "True is not a token id"),
    "position 0": (lambda raw: row(raw).update(position=0), "row 0: the position is 0, expected 1 to"),
    "position beyond": (lambda raw: row(raw).update(position=999), "the position is 999"),
    "twice": (lambda raw: raw["prompts"][0]["rows"].append(row(raw)), "a position is there twice"),
    "a token's text": (lambda raw: row(raw).update(token="The"), "the token is 'The'"),
    "above 0": (lambda raw: row(raw).update(logprob=0.1), "the logprob is 0.1, expected a number"),
    "NaN": (lambda raw: row(raw).update(logprob=float("nan")), "the logprob is nan"),
    "a huge number": (lambda raw: row(raw).update(logprob=-(10**400)), "the logprob is -1000"),
    "another key": (lambda raw: row(raw).update(tokn=1), '"token" and "logprob", and nothing else'),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, written: Any) -> None:
    change, said = HOSTILE[case]
    with pytest.raises(InputError) as caught:
        read(written(change), VOCABULARY)
    assert said in caught.value.message
    assert caught.value.where is not None


@pytest.mark.parametrize("text", [b"", b"[", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_such_file(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)
    with pytest.raises(InputError):
        read(path, VOCABULARY)
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
        with pytest.raises(InputError):
            read(wrong, VOCABULARY)


def test_the_command_refuses_a_wrong_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text("{}")
    call = [sys.executable, "-m", "dsv4_mlx", "check", str(SHIPPED), "--quick", "--logprobs", str(path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: not a file of log-probabilities")
