"""The programs in examples/, on the demo."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import dsv4_mlx
from dsv4_mlx.hub.models import model_folder

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "ask": (
        "<Model demo native",
        "thought:  They ask about CSA.",
        "answered: CSA pools four",
        "ended by stop",
    ),
    "stream": ("> What is the sliding window?\n", "> What is CSA?\n"),
    "tools": ("find_room({'person': 'Faldor'}) -> room 214\nFaldor is in room 214.\n",),
    "structured": ("{'name': '", "'rating': "),
    "session": ("The official weights are FP8, with experts in\n", " -0.12  FP4.\n"),
}


def test_every_example_is_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_an_example(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "demo"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in out


def test_an_example_is_a_program(tmp_path: Path) -> None:
    """From anywhere, and with MODEL as an argument."""
    command = [sys.executable, str(EXAMPLES / "ask.py"), str(model_folder("demo"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "answered: CSA pools four tokens into a row" in done.stdout and not done.stderr


def test_the_six_lines_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES.parent / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len([line for line in block.splitlines() if line]) <= 6
    values: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), values)
    assert "PrefillProgress(done=" in capsys.readouterr().out
    assert isinstance(model := values["model"], dsv4_mlx.Model)
    model.close()
