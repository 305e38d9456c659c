"""Figures against numpy and scipy-free arithmetic; a small model against itself and another."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Checkpoints

from dsv4_mlx.convert import convert
from dsv4_mlx.engine import Engine, EngineOptions
from dsv4_mlx.engine.score import score
from dsv4_mlx.evaluation import evaluate
from dsv4_mlx.evaluation.figures import distance, divergence, log_softmax, perplexities, share

TEXT = "The quick brown fox jumps over the lazy dog. " * 12


def run(folder: Path, reference: Path | None, count: int, numerics: str = "official", text: str = TEXT):  # type: ignore[no-untyped-def]
    return evaluate(
        folder, text, count, EngineOptions(numerics=numerics), reference, lambda done, total: None  # type: ignore[arg-type]
    )  # fmt: skip


def test_uniform_logits_have_the_perplexity_of_the_vocabulary() -> None:
    rows = log_softmax(np.zeros((700, 50), np.float32))
    first, second = perplexities(-rows[:, 7])
    assert (first.begin, first.end, first.tokens) == (1, 513, 512)
    assert (second.begin, second.end, second.tokens) == (513, 701, 188)
    for bucket in (first, second):
        assert bucket.perplexity.value == pytest.approx(50)
        assert bucket.perplexity.low == pytest.approx(50)


def test_divergence_by_hand(rng: np.random.Generator) -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    kl, agree = divergence(np.log(p), np.log(q))
    assert kl[0] == pytest.approx(0.25 * math.log(2))
    assert not agree[0]
    same = log_softmax(rng.standard_normal((5, 9)).astype(np.float32))
    kl, agree = divergence(same, same)
    assert not kl.any()
    assert agree.all()


@pytest.mark.parametrize("hits", [0, 3, 50, 97, 100])
def test_the_interval_of_a_share_covers_as_it_says(hits: int, rng: np.random.Generator) -> None:
    """Of true shares inside the interval none makes the observation a 1-in-200 rarity; outside each does."""
    figure = share(hits, 100)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    for true, rare in ((figure.low - 0.05, True), ((figure.low + figure.high) / 2, False)):
        if 0 < true < 1:
            draws = rng.binomial(100, true, 20_000)
            tail = min(np.mean(draws >= hits), np.mean(draws <= hits))
            assert (tail < 0.025) == rare


def test_intervals_hold_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    inside = 0
    for _ in range(400):
        values = rng.exponential(2.0, 300)
        found = distance(values, values > 1)
        inside += found.kl.low <= 2.0 <= found.kl.high
    assert 0.91 <= inside / 400 <= 0.985


def test_a_model_against_itself(checkpoints: Checkpoints) -> None:
    """No distance; losses are those of the logits that `score` gives; the floor is that of the numerics."""
    folder = checkpoints.converted("small")
    found = run(folder, folder, 40, numerics="exact")
    assert found.tokens == 40
    assert found.floor.kl.value == 0
    assert found.distance is not None
    assert found.distance.kl.value == 0
    assert found.distance.agreement.value == 1
    engine = Engine.open(folder, EngineOptions(64, "exact"))
    tokens = [0, *engine.prompts.tokenizer.encode(TEXT)][:40]
    logits = score(engine, tokens).astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = math.exp(-np.mean([log[i, t] for i, t in enumerate(tokens[1:])]))
    assert found.buckets[0].perplexity.value == pytest.approx(expected, rel=1e-6)
    assert run(folder, None, 40).floor.kl.value > 0


def test_a_coarser_recipe_is_further_than_the_floor(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "4bit"
    convert(checkpoints.official("small"), folder, recipe="4bit")
    found = run(folder, checkpoints.converted("small"), 40, numerics="exact")
    assert found.distance is not None
    assert found.distance.kl.low > 0
    assert found.distance.kl.value > found.floor.kl.value == 0


def test_the_command(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder, text, plot = checkpoints.converted("small"), tmp_path / "text", tmp_path / "plot.svg"
    text.write_text(TEXT)

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-m", "dsv4_mlx", "eval", str(folder), "--text", str(text), *more]
        return subprocess.run(given, capture_output=True, text=True, check=False)

    done = command("--tokens", "20", "--json", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == 20
    assert plot.read_text().startswith("<svg")
    text.write_text("")
    done = command()
    assert done.returncode == 2
    assert "expected 2 at least" in done.stderr
    text.write_bytes(b"\xff\xfe\xff")
    done = command()
    assert (done.returncode, done.stdout) == (2, "")
    assert "can't be read" in done.stderr
