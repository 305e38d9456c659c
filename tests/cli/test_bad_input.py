"""Bad input through the command line: exit 2, one clear message on stderr, nothing damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Checkpoints
from cli import damaged

from dsv4_mlx.cli.main import run

Output = pytest.CaptureFixture[str]


def digests(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes() if p.is_file() else b"").hexdigest()
        for p in sorted(folder.iterdir())
    }


def refused(arguments: list[str], output: Output, says: str, code: int = 2) -> None:
    found = run(arguments)
    out, err = output.readouterr()
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ") and err.count("error:") == 1
    assert says in err and "Traceback" not in err


@pytest.fixture
def model(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy to damage; files are linked until they are written to by name."""
    return Path(shutil.copytree(checkpoints.converted("small"), tmp_path / "model"))


@pytest.mark.parametrize("case", damaged.CASES, ids=lambda case: case.name)
def test_damaged_model(case: damaged.Case, model: Path, tmp_path: Path, capsys: Output) -> None:
    case.damage(model)
    before = digests(model)
    tokens, out = tmp_path / "tokens.json", tmp_path / "out.npz"
    tokens.write_text("[[0, 5]]")
    refused(["logits", str(model), "--tokens", str(tokens), "--out", str(out)], capsys, case.says)
    assert digests(model) == before and not out.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ("[[1, 2], [3", "not JSON"),
        ("{}", "one array of arrays"),
        ("[1, 2]", "one array of arrays"),
        ("[]", "no prompts"),
        ("[[0], []]", "prompt 1 has no tokens"),
        ("[[0, 640]]", "token 1 is 640, expected an id from 0 to 639"),
        ("[[-1]]", "token 0 is -1"),
        (f"[[{2**70}]]", f"token 0 is {2**70}"),
        ("[[0, 1.5]]", "prompt 0 holds 1.5"),
        ("[[true]]", "prompt 0 holds True"),
        ('[["a"]]', "prompt 0 holds 'a'"),
        ("[[null]]", "prompt 0 holds None"),
        ("[" * 100_000, "not JSON"),
        (f"[[{'9' * 5000}]]", "not JSON"),
        (json.dumps([[7] * 101]), "the prompt has 101 tokens, the context holds 100"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_tokens(
    checkpoints: Checkpoints, tmp_path: Path, capsys: Output, content: str, says: str
) -> None:
    tokens, out = tmp_path / "tokens.json", tmp_path / "out.npz"
    tokens.write_text(content)
    folder = str(checkpoints.converted("small"))
    options = ["--tokens", str(tokens), "--out", str(out), "--context", "100"]
    refused(["logits", folder, *options], capsys, says)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokens.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["logits", "MODEL", "--tokens", "no/file.json", "--out", "x.npz"], "can't be read"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "no/such/x.npz"], "no folder"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "."], "folder"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "x.npz", "--chunk", "0"], "--chunk"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "x.npz", "--decode", "-1"], "--decode"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "x.npz", "--numerics", "f"], "--numerics"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "x.npz", "--context", "0"], "context is 0"),
        (["logits", "MODEL", "--tokens", "tokens.json"], "--out"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "tokens.json"], "file of the tokens"),
        (["logits", "MODEL", "--tokens", "tokens.json", "--out", "x" * 300], "name too long"),
        (["info", "x" * 300], "name too long"),
        (["convert", "OFFICIAL", "x" * 300], "name too long"),
        (["generate", "MODEL", "-p", "x", "--context", "5"], "fills the context"),
        (["generate", "MODEL", "-p", "x", "--repetition-penalty", "1e-40"], "repetition-penalty is 1e-40"),
        (["chat", "MODEL", "-p", "\udcff"], "not text"),
        (["generate", "MODEL", "-p", "hello", "--context", "3"], "context holds 3"),
        (["generate", "MODEL", "-p", ""], "empty"),
        (["generate", "MODEL", "-p", "\udcff"], "not text"),
        (["generate", "MODEL", "-p", "x", "--max-tokens", "0"], "--max-tokens"),
        (["generate", "MODEL", "-p", "x", "--temperature", "-1"], "temperature is -1"),
        (["generate", "MODEL", "-p", "x", "--temperature", "nan"], "temperature is nan"),
        (["generate", "MODEL", "-p", "x", "--top-p", "0"], "top-p is 0"),
        (["generate", "MODEL", "-p", "x", "--seed", "-5"], "seed is -5"),
        (["generate", "MODEL", "-p", "x", "--think", "hard"], "--think"),
        (["generate", "MODEL", "-p", "x", "--stop-id", "640"], "expected an id below 640"),
        (["generate", "OFFICIAL", "-p", "x", "--stop-id", "-1"], "expected an id below 640"),
        (["generate", "MODEL", "-p", "x", "--logit-bias", "640=1"], "expected an id below 640"),
        (["bench", "MODEL", "--context", "５１２"], "expected numbers"),
        (["bench", "MODEL", "--context", "1_000"], "expected numbers"),
        (["generate", "MODEL", "-p", "x", "--context", "99999999"], "--context is 99999999"),
        (["generate", "no/such/model", "-p", "x"], "no folder 'no/such/model'"),
        (["generate", "", "-p", "x"], "MODEL is empty"),
        (["info", "tokens.json"], "is a file"),
        (["info", "."], "no manifest.json"),
        (["info"], "MODEL"),
        (["convert", "no/such/source", "target"], "no folder"),
        (["convert", "MODEL", "target"], "model.safetensors.index.json"),
        (["convert", "OFFICIAL", "MODEL"], "the target"),
        (["convert", "OFFICIAL", "target", "--recipe", "3bit"], "no recipe '3bit'"),
        (["convert", "OFFICIAL"], "Missing argument"),
        (["frobnicate"], "frobnicate"),
        (["info", "MODEL", "--loud"], "--loud"),
    ],
    ids=lambda value: " ".join(value).replace("MODEL", "M")[:60] if isinstance(value, list) else "",
)
def test_bad_arguments(
    checkpoints: Checkpoints,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokens.json").write_text("[[0]]")
    folders = {"MODEL": checkpoints.converted("small"), "OFFICIAL": checkpoints.official("small")}
    before = {name: digests(folder) for name, folder in folders.items()}
    refused([str(folders.get(word, word)) for word in arguments], capsys, says)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json"]
    assert {name: digests(folder) for name, folder in folders.items()} == before


def test_a_demo_folder_that_is_in_use(tmp_path: Path, capsys: Output) -> None:
    """Nothing the demo has not made is deleted."""
    (tmp_path / "dsv4-demo").mkdir()
    weights = tmp_path / "dsv4-demo" / "model.safetensors"
    weights.write_text("160 GB that took a day to download")
    refused(["demo", "--dir", str(tmp_path)], capsys, "'dsv4-demo', which it has not made")
    assert weights.read_text().startswith("160 GB")
    refused(["demo", "--dir", str(weights)], capsys, "can't be built here", code=3)


def test_logits_that_cannot_be_written(
    checkpoints: Checkpoints, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text("[[0]]")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = ["logits", str(checkpoints.converted("small")), "--tokens", str(tokens), "--out"]
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.NamedTemporaryFile", full)
        refused([*arguments, str(tmp_path / "x.npz")], capsys, "No space left", code=3)
    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez", full)
        refused([*arguments, str(tmp_path / "x.npz")], capsys, "No space left", code=3)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json"]


def test_logits_do_not_replace_a_device(checkpoints: Checkpoints, tmp_path: Path, capsys: Output) -> None:
    """A pipe stands for /dev/null, which root would have lost."""
    tokens, pipe = tmp_path / "tokens.json", tmp_path / "pipe"
    tokens.write_text("[[0]]")
    os.mkfifo(pipe)
    arguments = ["logits", str(checkpoints.converted("small")), "--tokens", str(tokens), "--out", str(pipe)]
    refused(arguments, capsys, "no ordinary file")
    assert pipe.is_fifo()


def test_output_that_cannot_be_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """In a process of its own: Python flushes once more when it ends."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "dsv4_mlx", "info", str(checkpoints.converted("small"))]
    with full.open("w") as out:
        found = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        refusal = [sys.executable, "-m", "dsv4_mlx", "info", "no/such"]
        assert subprocess.run(refusal, stderr=out, check=False).returncode == 2
    assert (found.returncode, found.stderr) == (3, "error: No space left on device\n")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    found = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_crash_is_logged_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("dsv4_mlx.hub.models.at_home", None)
    assert run(["info", "x"]) == 70
    log = Path(capsys.readouterr().err.split("with the file ")[1].strip())
    assert "Traceback" in log.read_text()
    log.unlink()
