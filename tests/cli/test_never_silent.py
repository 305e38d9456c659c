"""Nothing long goes on in silence, and no answer that is not whole passes for one."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoints

from dsv4_mlx.cli.main import run
from dsv4_mlx.convert.run import convert

Output = pytest.CaptureFixture[str]


@pytest.fixture
def folder(checkpoints: Checkpoints) -> str:
    return str(checkpoints.converted("small"))


def said(folder: str, output: Output, *more: str) -> tuple[int, str, str]:
    code = run(["generate", folder, "-p", "Why?", "--seed", "3", *more])
    return code, *output.readouterr()


CUT = "(cut off: the limit of tokens is reached, {})"


@pytest.mark.parametrize("think", ["off", "on"])
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("limit", [("--max-tokens", "3"), ("--context", "30")])
def test_a_cut_is_said_whatever_cut(
    think: str, complete: bool, limit: tuple[str, str], folder: str, capsys: Output
) -> None:
    """The end of the sentence can't be drawn, so that only a limit ends it."""
    if complete and think == "on":
        return
    more = ("--complete",) if complete else ("--think", think)
    code, out, err = said(folder, capsys, *more, *limit, "--logit-bias", "1=-1000")
    assert code == 0
    words = "--max-tokens 3" if limit[0] == "--max-tokens" else "the context of 30"
    assert CUT.format(words) in err.splitlines()
    assert ("(no answer: it was still thinking" in err) == (not out.strip() and think == "on")


def test_what_is_whole_is_not_called_cut(folder: str, capsys: Output) -> None:
    code, out, err = said(folder, capsys, "--think", "off", "--regex", "ab")
    assert (code, out.strip()) == (0, "ab") and "cut" not in err


def test_an_empty_answer_says_so(folder: str, capsys: Output) -> None:
    for think in ("off", "on"):
        code, out, err = said(folder, capsys, "--think", think, "--logit-bias", "1=1000")
        assert (code, out.strip()) == (0, "") and "(no answer)" in err.splitlines() and "cut" not in err


@pytest.mark.parametrize("tokens", range(1, 8))
@pytest.mark.parametrize("form", ["schema", "regex"])
def test_under_an_enforced_form_the_exit_code_says_whether_it_is_whole(
    form: str, tokens: int, folder: str, tmp_path: Path, capsys: Output
) -> None:
    """0 and an answer of the form, or 4, never anything between, wherever the limit falls."""
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": [[1], [1, 2, 3]]}))
    given = ("--json-schema", str(schema)) if form == "schema" else ("--regex", "(abc){1,2}")
    code, out, err = said(folder, capsys, "--think", "off", *given, "--max-tokens", str(tokens))
    if form == "regex":
        whole = re.fullmatch("(abc){1,2}", out.strip()) is not None
    else:
        try:
            whole = json.loads(out) in ([1], [1, 2, 3])
        except ValueError:
            whole = False
    assert code == (0 if whole else 4), (out, err)
    assert ("error: the answer is cut off" in err) == ("(cut off" in err) == (not whole)


def test_a_stop_string_that_breaks_the_form_is_a_cut(folder: str, tmp_path: Path, capsys: Output) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"const": [1, 2]}))
    assert said(folder, capsys, "--think", "off", "--json-schema", str(schema), "--stop", "2")[0] == 4


LONG: dict[str, tuple[str, list[str]]] = {
    "generate": ("tokens", ["MODEL", "-p", "word " * 140, "--max-tokens", "1", "--think", "off"]),
    "logits": ("tokens", ["MODEL", "--tokens", "TOKENS", "--out", "OUT"]),
    "bench": ("tokens", ["MODEL", "--context", "16,140", "--decode", "1"]),
    "evaluate": ("tokens", ["MODEL", "--text", "TEXT", "--tokens", "300"]),
    "verify": ("bytes", ["MODEL"]),
    "convert": ("bytes", ["OFFICIAL", "OUT"]),
}


@pytest.mark.parametrize("command", LONG)
def test_what_reads_a_prompt_or_a_model_shows_how_far_it_is(
    command: str, folder: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first step to the end, in more than one step; never back, and never beyond the end."""
    seen: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def recorded(title: str, unit: str = "bytes", **_: Any) -> Iterator[Callable[..., None]]:
        yield lambda done, total, stage="": seen.setdefault(unit, []).append((done, total))

    for module in ("disk_work", command):
        found = importlib.import_module(f"dsv4_mlx.cli.{module}")
        if hasattr(found, "progress"):
            monkeypatch.setattr(found, "progress", recorded)
    (tmp_path / "tokens.json").write_text(json.dumps([[7] * 300, [8] * 200]))
    (tmp_path / "text").write_text("one two three " * 400)
    places = {
        "MODEL": folder, "OFFICIAL": str(checkpoints.official("small")), "OUT": str(tmp_path / "out"),
        "TOKENS": str(tmp_path / "tokens.json"), "TEXT": str(tmp_path / "text"),
    }  # fmt: skip
    unit, arguments = LONG[command]
    name = "eval" if command == "evaluate" else command
    assert run([name, *(places.get(word, word) for word in arguments)]) == 0
    steps = seen[unit]
    assert len(steps) >= 2 and steps[-1][0] == steps[-1][1] > 0
    assert all(0 <= done <= total for done, total in steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_repair_shows_how_far_it_is(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, model, steps = checkpoints.official("small"), tmp_path / "model", []
    convert(source, model)
    (model / "head.safetensors").unlink()
    convert(source, model, repair=True, progress=lambda done, total, file: steps.append((done, total, file)))
    assert [file for _, _, file in steps if file][-1] == "head.safetensors"
    assert all(done <= total for done, total, _ in steps) and len([1 for *_, file in steps if not file]) > 5


def test_reads_that_are_not_checked_are_told_of(folder: str, capsys: Output) -> None:
    with pytest.warns(UserWarning, match="--verify-reads checks nothing here"):
        said(folder, capsys, "--max-tokens", "1", "--verify-reads")
