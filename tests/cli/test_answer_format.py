"""`generate --json-schema` and `--regex`: the answer has the form that was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import Checkpoints

from dsv4_mlx.cli.main import run

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["generate", *words, "-p", "Say it.", "--seed", "3"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_answers_have_their_form(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(checkpoints.converted("small"))
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    value = json.loads(said(capsys, model, "--json-schema", str(file), "--think", "off"))
    assert set(value) == {"ok", "n"} and type(value["ok"]) is bool and 0 <= value["n"] <= 9
    assert re.fullmatch("(ab|c){1,3}\n", said(capsys, model, "--regex", "(ab|c){1,3}", "--think", "off"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("", "is empty"),
        ("{", "is not JSON"),
        ('{"not": {}}', "'not' is not enforced"),
        ('{"type": "string", "pattern": "(?=a)"}', "a pattern is not understood"),
        ("\ud800", "can't be read"),
    ],
)
def test_defects_show_before_a_model_is_loaded(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "schema.json"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert run(["generate", "no-such-model", "-p", "x", "--json-schema", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_one_form_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "no-such-model", "-p", "x", "--regex", "a"]
    assert run([*words, "--json-schema", str(tmp_path)]) == 2
    assert "can't go together" in capsys.readouterr().err
    assert run([*words[:-1], "(?=a)"]) == 2
    assert "a pattern is not understood" in capsys.readouterr().err
