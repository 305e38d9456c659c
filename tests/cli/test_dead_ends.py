"""A model that is not here, or only in part: no command that takes one ends without the next step."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from checkpoints import Checkpoints
from hub.conftest import same
from hub.fake_hub import COMMIT, REPOSITORY, Hub, serving

from dsv4_mlx.cli.main import run
from dsv4_mlx.hub.remote import Remote, look
from dsv4_mlx.machine.units import size
from dsv4_mlx.planning.candidates import RELEASES

Output = pytest.CaptureFixture[str]
WITH_MODEL = {
    "chat": ["-p", "x"], "generate": ["-p", "x"], "serve": [], "verify": [], "info": [], "bench": [],
    "check": [], "logits": ["--tokens", "TOKENS", "--out", "OUT"], "eval": ["--text", "TOKENS"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and a network that only reaches this machine."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "hub"


def part_of(official: Path, cache: Path, leave: str) -> Path:
    """A snapshot in the Hub's cache without the files whose names hold `leave`."""
    home = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for path in official.iterdir():
        if leave not in path.name:
            shutil.copy(path, snapshot / path.name)
    return snapshot


@pytest.mark.parametrize("leave", [None, "00002-of", "tokenizer.json", "index.json", "config.json"])
@pytest.mark.parametrize("command", WITH_MODEL)
def test_every_command_says_what_to_type(
    command: str, leave: str | None, cache: Path, checkpoints: Checkpoints, tmp_path: Path, capsys: Output
) -> None:
    if leave is not None:
        part_of(checkpoints.official("small"), cache, leave)
    (tmp_path / "tokens").write_text("[[1, 2]]")
    words = {"TOKENS": str(tmp_path / "tokens"), "OUT": str(tmp_path / "out")}
    assert run([command, REPOSITORY, *(words.get(word, word) for word in WITH_MODEL[command])]) == 2
    err = capsys.readouterr().err
    assert f"dsv4-mlx download {REPOSITORY} ~/models/" in err and f"dsv4-mlx convert {REPOSITORY} " in err


def asks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line asks this Hub: the library reads HF_ENDPOINT only when it is imported."""

    def found(repository: str, revision: str | None = None, **_: Any) -> Remote:
        return look(repository, revision, endpoint=hub.endpoint)

    for module in ("remote", "download"):
        monkeypatch.setattr(f"dsv4_mlx.hub.{module}.look", found)


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_planned_without_a_file(release: str, capsys: Output) -> None:
    assert run(["plan", release, "--for", "512GB", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "dsv4-mlx convert" in err and release in err
    lines = [line for option in found["options"] for line in option["commands"] if "chat" not in line]
    assert lines and all(release in line.split() for line in lines)
    sizes = {option["name"]: option["disk"]["download"] for option in found["options"]}
    flash = 159_609_485_896  # the published figure
    assert (sizes["official"] == flash) == (RELEASES[release] == "flash") and sizes["official"] >= flash


@pytest.mark.parametrize("leave", ["00002-of", "tokenizer.json", "index.json"])
def test_a_cache_with_a_part_is_completed(
    leave: str, cache: Path, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = checkpoints.official("small")
    part_of(official, cache, leave)
    with serving(Hub(official)) as hub:
        asks(hub, monkeypatch)
        assert run(["convert", REPOSITORY, str(tmp_path / "out"), "--delete-source"]) == 0
    assert same(tmp_path / "out", checkpoints.converted("small"))


@pytest.mark.parametrize("answer", ["y", "", "n"])
def test_a_terminal_is_asked_and_no_is_the_default(
    answer: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    asked: list[str] = []

    def confirm(text: str, **options: Any) -> bool:
        asked.append(text)
        assert options["default"] is False
        return answer == "y"

    monkeypatch.setattr("typer.confirm", confirm)
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    official = checkpoints.official("small")
    with serving(Hub(official)) as hub:
        asks(hub, monkeypatch)
        code = run(["info", REPOSITORY])
    err, total = capsys.readouterr().err, size(sum(path.stat().st_size for path in official.iterdir()))
    place = tmp_path / "home" / "models" / "tiny-official"
    assert (
        f"it has {total}" in err and "are free in" in err and "B/s, measured now, it takes" in err and asked
    )
    assert (code, place.exists()) == ((0, True) if answer == "y" else (2, False))
    if answer == "y":
        assert same(place, official)
    else:
        assert f"dsv4-mlx download {REPOSITORY}" in err and os.environ["HOME"] in asked[0]
