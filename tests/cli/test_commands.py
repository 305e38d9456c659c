"""Every command on a small model: what goes to stdout and stderr, files, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Checkpoints
from compare import PARTITION, assert_bits, assert_close

from dsv4_mlx import __version__
from dsv4_mlx.cli.main import COMMANDS, run
from dsv4_mlx.convert.run import convert
from dsv4_mlx.hub.models import build

Output = pytest.CaptureFixture[str]


@pytest.fixture
def folder(checkpoints: Checkpoints) -> str:
    return str(checkpoints.converted("small"))


def succeeded(arguments: list[str], output: Output) -> tuple[str, str]:
    code = run(arguments)
    out, err = output.readouterr()
    assert code == 0, err
    return out, err


def test_version_and_help(capsys: Output) -> None:
    assert succeeded(["--version"], capsys)[0] == f"dsv4-mlx {__version__}\n"
    listing, _ = succeeded(["--help"], capsys)
    assert succeeded([], capsys)[0] == listing
    for command in COMMANDS:
        name = command.__name__
        assert re.search(rf"^  {name} ", listing, re.M)
        out, err = succeeded([name, "--help"], capsys)
        assert "Example: dsv4-mlx" in out and err == ""


def test_info(folder: str, checkpoints: Checkpoints, capsys: Output) -> None:
    out, err = succeeded(["info", folder, "--json"], capsys)
    facts = json.loads(out)
    assert err == "" and (facts["checkpoint"], facts["recipe"]) == ("april", "native")
    shape = facts["architecture"]
    assert (shape["window_only"], shape["csa"], shape["hca"], shape["draft_blocks"]) == (2, 3, 2, 1)
    stored = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    assert facts["bytes"]["total"] == sum(facts["bytes"]["components"].values())
    assert 0.9 * stored < facts["bytes"]["total"] <= stored
    out, err = succeeded(["info", folder], capsys)
    assert err == "" and "3 CSA, 2 HCA" in out and "routed experts" in out


@pytest.mark.parametrize("think", ["off", "on", "max"])
def test_generate(folder: str, capsys: Output, think: str) -> None:
    """Thinking goes to stderr, the answer to stdout; random weights never finish thinking in 12 tokens."""
    arguments = ["generate", folder, "-p", "Why?", "--think", think, "--seed", "5", "--max-tokens", "12"]
    out, err = succeeded(arguments, capsys)
    cut = "(cut off: the limit of tokens is reached, --max-tokens 12)\n"
    assert (out.strip() == "") == (think != "off") and (err == cut) == (think == "off") and cut in err
    if think == "off":
        assert succeeded(arguments, capsys) == (out, err), "the same seed gives the same text"
        arguments[arguments.index("5")] = "6"
        assert succeeded(arguments, capsys) != (out, err)


def test_generate_goes_on_with_a_text(
    folder: str, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["generate", folder, "--complete", "--seed", "5", "--max-tokens", "12"]
    out, err = succeeded([*arguments, "-p", "Why?\n\n  yes"], capsys)
    assert out.strip() and err == "(cut off: the limit of tokens is reached, --max-tokens 12)\n"
    (tmp_path / "text").write_text("Why")
    with (tmp_path / "text").open() as piped:
        monkeypatch.setattr("sys.stdin", piped)
        assert succeeded([*arguments, "-p", "?\n\n  yes"], capsys)[0] == out, "nothing comes between the two"


def test_a_text_that_goes_on_is_not_thought_about(folder: str, capsys: Output, tmp_path: Path) -> None:
    arguments = ["generate", folder, "--complete", "-p", "Why?", "--seed", "5", "--max-tokens", "12"]
    assert run([*arguments, "--think", "max"]) == 2
    assert "--complete and --think can't go together" in capsys.readouterr().err
    assert succeeded([*arguments, "--think", "off"], capsys) == succeeded(arguments, capsys)
    out, _ = succeeded([*arguments, "--regex", "[0-9]{3}"], capsys)
    assert re.fullmatch(r"[0-9]{3}\n", out), "held from the first token on"
    assert run([*arguments, "--regex", "[0-9]{3}", "--stop", out[1]]) == 4, "a stop cuts the form"
    assert capsys.readouterr().out == out[: out.index(out[1])] + "\n"


def test_generate_without_a_seed_varies(folder: str, capsys: Output) -> None:
    arguments = ["generate", folder, "-p", "Why?", "--think", "off", "--max-tokens", "10"]
    assert len({succeeded(arguments, capsys) for _ in range(3)}) > 1
    greedy = [*arguments, "--temperature", "0"]
    assert len({succeeded(greedy, capsys) for _ in range(2)}) == 1


def test_the_model_may_come_from_the_environment(
    folder: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_MODEL", folder)
    assert json.loads(succeeded(["info", "--json"], capsys)[0])["folder"] == folder


PROMPTS = [[0, 5, 9, 300, 17, 4, 4, 639], [3], list(range(150))]


def logits(folder: str, tmp_path: Path, output: Output, *options: str) -> list[np.ndarray]:
    tokens, out = tmp_path / "tokens.json", tmp_path / "out.npz"
    tokens.write_text(json.dumps(PROMPTS))
    said, _ = succeeded(["logits", folder, "--tokens", str(tokens), "--out", str(out), *options], output)
    assert said == "" and sorted(p.name for p in tmp_path.iterdir()) == ["out.npz", "tokens.json"]
    with np.load(out) as arrays:
        assert arrays.files == ["0", "1", "2"]
        found = [arrays[name] for name in arrays.files]
    assert [a.shape for a in found] == [(len(p), 640) for p in PROMPTS]
    assert all(a.dtype == np.float32 for a in found)
    return found


def test_logits(folder: str, tmp_path: Path, capsys: Output) -> None:
    whole = logits(folder, tmp_path, capsys, "--numerics", "exact")
    for options in (["--chunk", "37"], ["--chunk", "64", "--decode", "3"]):
        for found, expected in zip(
            logits(folder, tmp_path, capsys, "--numerics", "exact", *options), whole, strict=True
        ):
            assert_close(found, expected, PARTITION, f"with {options}")
    official = logits(folder, tmp_path, capsys)
    assert_bits(logits(folder, tmp_path, capsys, "--numerics", "official")[2], official[2], "the default")
    assert np.abs(official[2] - whole[2]).max() > 1e-2


def test_convert(checkpoints: Checkpoints, tmp_path: Path, capsys: Output) -> None:
    source = str(checkpoints.official("small"))
    out, _ = succeeded(["convert", source, str(tmp_path / "a"), "--json"], capsys)
    facts = json.loads(out)
    assert (facts["status"], facts["recipe"], facts["checkpoint"]) == ("converted", "native", "april")
    out, _ = succeeded(["convert", source, str(tmp_path / "b")], capsys)
    assert str(tmp_path / "b") in out
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_demo_is_reused_only_undamaged(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*arguments: object, **more: object) -> object:
        made.append(arguments)
        return convert(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("dsv4_mlx.convert.run.convert", counted)
    first, _ = succeeded(["demo", "--dir", str(tmp_path)], capsys)
    assert [f"--think {mode}" in first for mode in ("off", "on", "max")] == [True] * 3
    assert str(tmp_path / "dsv4-demo") in first
    assert build(tmp_path).reused and len(made) == 1
    path = tmp_path / "dsv4-demo" / "layer-02.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not build(tmp_path).reused and len(made) == 2
    (tmp_path / "demo.json").write_text("{}\n")  # an interrupted run
    assert not build(tmp_path).reused and len(made) == 3
    assert succeeded(["demo", "--dir", str(tmp_path)], capsys)[0].replace("  (reused)", "") == first


def test_demo_as_a_model(capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo` stands for the model in the cache folder, built when it isn't there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    facts = json.loads(succeeded(["info", "demo", "--json"], capsys)[0])
    assert Path(facts["folder"]).is_relative_to(tmp_path)


def test_a_bug_is_logged(folder: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("wires crossed")

    monkeypatch.setattr("dsv4_mlx.engine.info.facts", broken)
    assert run(["info", folder]) == 70
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: this is a bug in dsv4-mlx: RuntimeError: wires crossed")
    log = Path(re.search(r"the file (\S+)", err)[1])  # type: ignore[index]
    assert "Traceback" in log.read_text() and "def broken" not in err


def test_interrupt(folder: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsv4_mlx.engine.info.facts", interrupted)
    assert run(["info", folder]) == 130
    assert capsys.readouterr() == ("", "error: interrupted\n")
