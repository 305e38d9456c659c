"""Every command that takes MODEL takes an official folder, with the answers that its conversion gives."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoint.damage import narrow_scales
from checkpoint.decoding import official_tensors
from checkpoints import Checkpoints

from dsv4_mlx.cli.main import run

Output = pytest.CaptureFixture[str]
REVISION = "0123456789abcdef0123456789abcdef01234567"


def said(arguments: list[str], output: Output) -> str:
    code = run(arguments)
    out, err = output.readouterr()
    assert code == 0, err
    return out


@pytest.fixture
def folders(checkpoints: Checkpoints) -> tuple[str, str]:
    return str(checkpoints.official("small")), str(checkpoints.converted("small"))


def test_info(folders: tuple[str, str], capsys: Output) -> None:
    official, converted = (json.loads(said(["info", folder, "--json"], capsys)) for folder in folders)
    assert (official["recipe"], converted["recipe"]) == ("official", "native")
    assert official["architecture"] == converted["architecture"]
    ours, theirs = official["bytes"]["components"], converted["bytes"]["components"]
    assert ours.keys() == theirs.keys()
    assert ours["routed experts"] < theirs["routed experts"], "records are padded"
    assert official["bytes"]["total"] == stored_bytes(Path(folders[0]))
    assert ours["embedding"] == theirs["embedding"]
    assert ours["attention"] < theirs["attention"], "a scale for 128x128 weights, not for every 32"


def test_info_of_experts_in_fp8(checkpoints: Checkpoints, capsys: Output) -> None:
    """Stored are scales of blocks, in memory those that a conversion writes."""
    folder = checkpoints.official("wide base")
    official = json.loads(said(["info", str(folder), "--json"], capsys))
    converted = json.loads(said(["info", str(checkpoints.converted("wide base")), "--json"], capsys))
    assert official["bytes"]["total"] == stored_bytes(folder)
    extra = official["memory"][0]["total"] - official["memory"][0]["state"] - official["bytes"]["total"]
    tensors = official_tensors(folder)
    eight = {name: shape for name, (dtype, shape, _) in tensors.items() if dtype == "F8_E4M3"}
    assert extra == sum(rows * columns // 32 for rows, columns in eight.values())
    assert official["memory"][0]["total"] == pytest.approx(converted["memory"][0]["total"], rel=0.03)


def test_info_of_a_drafter(checkpoints: Checkpoints, capsys: Output) -> None:
    """Its blocks are stored and not run: no memory."""
    for folder in (checkpoints.official("0731"), checkpoints.converted("0731")):
        facts = json.loads(said(["info", str(folder), "--json"], capsys))
        weights = facts["memory"][0]["total"] - facts["memory"][0]["state"]
        read = facts["bytes"]["total"] - facts["bytes"]["components"]["draft block (MTP)"]
        assert read <= weights < read * 1.02


def stored_bytes(folder: Path) -> int:
    return sum(len(data) for _, _, data in official_tensors(folder).values())


def test_info_of_scales_as_bytes(checkpoints: Checkpoints, tmp_path: Path, capsys: Output) -> None:
    folder = narrow_scales(checkpoints.official("wide base"), tmp_path / "narrow")
    official = json.loads(said(["info", str(folder), "--json"], capsys))
    assert official["bytes"]["total"] == stored_bytes(folder)


def test_answers_and_logits(folders: tuple[str, str], tmp_path: Path, capsys: Output) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text("[[0, 5, 9, 300, 17, 4, 4, 639]]")
    answers, logits = [], []
    for number, folder in enumerate(folders):
        ask = ["generate", folder, "-p", "Why?", "--think", "off", "--temperature", "0", "--max-tokens", "9"]
        answers.append(said([*ask, "--expert-memory", "3x"], capsys))
        out = tmp_path / f"{number}.npz"
        said(["logits", folder, "--tokens", str(tokens), "--out", str(out)], capsys)
        with np.load(out) as arrays:
            logits.append(arrays["0"].view(np.uint32))
    assert answers[0] == answers[1] and answers[0].strip()
    assert np.array_equal(logits[0], logits[1])


def test_chat_and_bench(folders: tuple[str, str], capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    asked = ["-p", "Why?", "--think", "off", "--temperature", "0", "--max-tokens", "9"]
    answers = [said(["chat", folder, *asked], capsys) for folder in folders]
    assert answers[0] == answers[1] and answers[0].strip()
    facts = json.loads(said(["bench", folders[0], "--context", "16", "--decode", "2", "--json"], capsys))
    assert facts["model"]["recipe"] == "official" and facts["frontiers"][0]["context"] == 16


def test_a_hub_id(
    checkpoints: Checkpoints, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the Hub's cache a snapshot's files are links into blobs/ beside it."""
    repository = tmp_path / "models--deepseek-ai--V4"
    snapshot, blobs = repository / "snapshots" / REVISION, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for number, path in enumerate(sorted(checkpoints.official("small").iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "recipe official" in said(["info", "deepseek-ai/V4"], capsys)
    assert run(["info", "deepseek-ai/V5"]) == 2
    assert "no folder 'deepseek-ai/V5'" in capsys.readouterr().err


def test_verify_of_an_official_folder_needs_the_digests_of_the_hub(
    folders: tuple[str, str], capsys: Output
) -> None:
    assert run(["verify", folders[0]]) == 2
    assert re.search(
        "^error: the digests that the Hub lists for these files are not here", capsys.readouterr().err
    )


def test_a_download_that_is_not_complete(checkpoints: Checkpoints, tmp_path: Path, capsys: Output) -> None:
    for path in checkpoints.official("small").glob("model-0000*"):
        (tmp_path / path.name).symlink_to(path)
    for name, missing in (("config.json", "there is no config.json"), ("tokenizer.json", "tokenizer.json")):
        assert run(["info", str(tmp_path)]) == 2
        assert missing in capsys.readouterr().err
        (tmp_path / name).write_bytes((checkpoints.official("small") / name).read_bytes())
    assert run(["info", str(tmp_path)]) == 2
    assert "there is no model.safetensors.index.json" in capsys.readouterr().err
