"""A small model against itself and others, in memory and paged; texts that are none; the command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from checkpoints import Checkpoints

from dsv4_mlx.cli.evaluate import _read
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import DoesNotFit, InputError, MachineError
from dsv4_mlx.evaluation.perplexity import Evaluation, evaluate
from dsv4_mlx.hub.models import SHIPPED

TEXT = "The quick brown fox jumps over the lazy dog. " * 12
TAUGHT = "The code of Gosax is 925. The old river was near the small house at night. " * 90


def run(folder: Path, reference: Path | None, count: int, text: str = TEXT, **options: Any) -> Evaluation:
    return evaluate(folder, text, count, EngineOptions(**options), reference, lambda done, total: None)


@pytest.fixture(scope="module")
def fourbit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "4bit"
    convert(SHIPPED, folder, recipe="4bit")
    return folder


def test_a_model_against_itself(checkpoints: Checkpoints) -> None:
    """No distance; losses are those of the logits that `score` gives; the floor is that of the numerics."""
    folder = checkpoints.converted("small")
    found = run(folder, folder, 40, numerics="exact")
    assert found.tokens == 40
    assert found.distance is not None
    assert found.distance.kl.value == 0
    assert found.distance.agreement.value == 1
    assert found.beyond_floor is False
    assert found.reference_buckets == found.buckets
    engine = Engine.open(folder, EngineOptions(64, "exact"))
    tokens = [0, *engine.prompts.tokenizer.encode(TEXT)][:40]
    logits = score(engine, tokens).astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = math.exp(-np.mean([log[i, t] for i, t in enumerate(tokens[1:])]))
    assert found.buckets[0].perplexity.value == pytest.approx(expected, rel=1e-6)


def test_the_floor_is_from_exact_to_official_whichever_is_evaluated(checkpoints: Checkpoints) -> None:
    folder = checkpoints.converted("small")
    exact, official = (run(folder, None, 40, numerics=name) for name in ("exact", "official"))
    assert exact.floor.kl.value == pytest.approx(official.floor.kl.value, rel=1e-9)
    assert exact.floor.kl.value > 0
    assert exact.buckets != official.buckets


def test_two_recipes_of_the_demo_and_paging(fourbit: Path) -> None:
    """4bit is further from the released weights than the floor; with a quarter of the experts in memory the
    figures are the same to the bit."""
    found = run(fourbit, SHIPPED, 600, TAUGHT)
    assert found.distance is not None
    assert 0 <= found.floor.kl.low <= found.floor.kl.value < found.distance.kl.low
    assert found.beyond_floor is True
    assert 0.5 < found.distance.agreement.low <= found.distance.agreement.value <= found.floor.agreement.value
    assert [(b.begin, b.end, b.tokens) for b in found.buckets] == [(1, 513, 512), (513, 600, 87)]
    whole, paged = (run(fourbit, SHIPPED, 150, TAUGHT, expert_memory=held) for held in ("100%", "25%"))
    assert paged == whole


def test_a_text_longer_than_the_context(checkpoints: Checkpoints) -> None:
    with pytest.raises(
        DoesNotFit, match=r"9,000 tokens are more than the model's context of 8,192"
    ) as caught:
        run(SHIPPED, None, 9000, "a " * 9000)
    assert caught.value.next == "use --tokens 8192 or fewer"
    assert run(SHIPPED, None, 9000, "a b c").tokens < 10  # a short text needs no context


def test_models_of_different_tokenizers(checkpoints: Checkpoints) -> None:
    with pytest.raises(InputError, match="different tokenizers"):
        run(SHIPPED, checkpoints.converted("small"), 40)


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        MachineError, match=r"temporary file of [0-9.]+ [kM]?B can't be written: [0-9.]+ [kM]?B are missing"
    ):
        run(SHIPPED, None, 40)


@pytest.fixture
def command(tmp_path: Path) -> Any:
    def given(*more: str, text: bytes = TEXT.encode(), **options: Any) -> subprocess.CompletedProcess[str]:
        (tmp_path / "text").write_bytes(text)
        call = [
            sys.executable,
            "-m",
            "dsv4_mlx",
            "eval",
            str(SHIPPED),
            "--text",
            str(tmp_path / "text"),
            *more,
        ]
        return subprocess.run(call, capture_output=True, text=True, check=False, **options)

    return given


def test_the_command(command: Any, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    done = command("--tokens", "20", "--json", "--plot", str(plot), "--reference", str(SHIPPED))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["tokens"] == 20
    assert found["distance"]["kl"]["value"] == 0
    assert str(tmp_path) not in done.stdout
    drawn = ElementTree.parse(plot).getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    done = command("--tokens", "20")
    lines = done.stdout.splitlines()
    assert lines[1].startswith("its own other numerics (the floor)\t20\t")
    assert lines[2] == "tokens before\ttokens\tperplexity"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the text has 0 tokens, expected 2 at least"),
        (b"a", "the text has 1 tokens, expected 2 at least"),
        (b"abc\xff\xfe\xff", "the text is not UTF-8: byte 0xff at 3"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "the text is not UTF-8: byte 0x89 at 0"),
        (b"abc \xe2\x82", "the text is not UTF-8: byte 0xe2 at 4"),
    ],
)  # fmt: skip
def test_texts_that_are_none(text: bytes, said: str, command: Any) -> None:
    done = command(text=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")


def test_of_a_huge_text_only_the_beginning_is_read(command: Any, tmp_path: Path) -> None:
    """4 GB of a sparse file."""
    begin = ("€" * 2000).encode()
    done = command("--tokens", "30", "--json", text=begin)
    huge = tmp_path / "text"
    with huge.open("r+b") as file:
        file.truncate(4 << 30)
    call = [sys.executable, "-m", "dsv4_mlx", "eval", str(SHIPPED), "--text", str(huge)]
    call += ["--tokens", "30", "--json"]
    again = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_a_character_cut_in_two_at_the_limit_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a€€")
    assert [_read(tmp_path / "text", limit) for limit in (4, 5, 6, 7, 8)] == ["a€", "a€", "a€", "a€€", "a€€"]


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "dsv4_mlx", "eval", str(SHIPPED), "--text", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "can't be read: Is a directory" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "text").write_text(TAUGHT * 4)
    call = [sys.executable, "-m", "dsv4_mlx", "eval", str(SHIPPED), "--text", str(tmp_path / "text")]
    running = subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(scratch)}
    )
    end = time.monotonic() + 60
    while not list(scratch.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(number)
    running.communicate(timeout=60)
    assert running.returncode == code
    assert not list(scratch.iterdir())
