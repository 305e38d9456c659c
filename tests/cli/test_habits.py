"""What fingers type out of habit: done, or answered by one sentence that helps."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from dsv4_mlx import __version__
from dsv4_mlx.cli import habits
from dsv4_mlx.cli.main import run
from dsv4_mlx.hub.models import SHIPPED, build
from dsv4_mlx.hub.on_disk import found_models

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("demo")).model)


def answered(output: Output, *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    return code, *output.readouterr()


@pytest.mark.parametrize("word", ["version", "-v", "-V", "--version"])
def test_the_version(word: str, capsys: Output) -> None:
    assert answered(capsys, word) == (0, f"dsv4-mlx {__version__}\n", "")


@pytest.mark.parametrize("words", [("plan", "-h"), ("help", "plan"), ("plan", "--help")])
def test_help(words: tuple[str, ...], capsys: Output) -> None:
    code, out, err = answered(capsys, *words)
    assert (code, err) == (0, "") and out.startswith("Usage: dsv4-mlx plan ")


@pytest.mark.parametrize("word", habits.COMMANDS)
def test_another_programs_command(word: str, capsys: Output) -> None:
    code, out, err = answered(capsys, word, "something")
    assert (code, out) == (2, "") and err.splitlines()[1] == f"  next: {habits.COMMANDS[word]}"


@pytest.mark.parametrize("option", habits.OPTIONS)
def test_another_programs_option(option: str, capsys: Output) -> None:
    code, out, err = answered(capsys, "generate", "demo", option, "1")
    assert (code, out) == (2, "") and err.splitlines()[-1] == f"  next: {habits.OPTIONS[option]}"


def test_no_model(capsys: Output) -> None:
    for command in ("chat", "generate", "serve", "info"):
        code, out, err = answered(capsys, command)
        assert code == 2 and "dsv4-mlx models" in err and "`demo`" in err


def test_completion_speaks_to_a_shell() -> None:
    words = os.environ | {
        "_DSV4_MLX_COMPLETE": "complete_bash", "COMP_WORDS": "dsv4-mlx conv", "COMP_CWORD": "1",
    }  # fmt: skip
    said = subprocess.run([sys.executable, "-m", "dsv4_mlx"], env=words, capture_output=True, text=True)
    assert said.stdout.split() == ["convert"] and not said.stderr


def test_generate_as_other_programs_have_it(demo: str, tmp_path: Path, capsys: Output) -> None:
    """Prompt as an argument, files, a system text; the same answer as by -p."""
    file = tmp_path / "notes.txt"
    file.write_text("It is called dsv4-mlx.\n")
    options = ("--temperature", "0", "--think", "off", "--max-tokens", "12")
    code, said, _ = answered(capsys, "generate", demo, "What is CSA?", *options)
    assert (code, said) == answered(capsys, "generate", demo, "-p", "What is CSA?", *options)[:2]
    both = ("What is it?", "-f", str(file), "--system", "Be brief.", "--stats", "--json")
    code, out, err = answered(capsys, "generate", demo, *both, *options)
    found = json.loads(out)
    assert code == 0 and found["thinking"] == "" and 0 < found["answer_tokens"] <= 12
    assert f"prompt {found['prompt_tokens']} tokens" in err and "answer" in err
    alone = json.loads(answered(capsys, "generate", demo, "What is it?", "--json", *options)[1])
    assert found["prompt_tokens"] > alone["prompt_tokens"] + 10, "file and system text are in it"
    assert json.loads(answered(capsys, "generate", demo, "-f", str(file), "--json", *options)[1])["answer"]


def test_thinking_ends_at_its_budget(demo: str, capsys: Output) -> None:
    asked = ("generate", demo, "What is CSA?", "--temperature", "0", "--json")
    free = json.loads(answered(capsys, *asked)[1])
    held = json.loads(answered(capsys, *asked, "--think-budget", "2")[1])
    assert len(held["thinking"]) < len(free["thinking"]) and held["answer"] and held["ended"] == "stop"


@pytest.mark.parametrize("wrong", [("one", "-p", "two"), ("x", "--complete", "--system", "s"),
                                   ("x", "--complete", "-f", "f")])  # fmt: skip
def test_what_does_not_go_together(wrong: tuple[str, ...], demo: str, capsys: Output) -> None:
    code, out, err = answered(capsys, "generate", demo, *wrong)
    assert (code, out) == (2, "") and err.startswith("error: ") and "next: leave" in err


def test_thinking_is_dim_on_a_terminal(demo: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dsv4_mlx", "generate", demo, "What is CSA?", "--temperature", "0"]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    thinking = os.read(ours, 1 << 16).decode()
    assert said.returncode == 0 and "\x1b[2m" in thinking and b"\x1b" not in said.stdout


def test_models_on_this_disk(demo: str, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "official").symlink_to(SHIPPED)
    (tmp_path / "flash").symlink_to(demo)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".convert.journal").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    found = {one.recipe: one for one in found_models([tmp_path, tmp_path / "missing"])}
    assert set(found) == {"official", "native", "-"}
    assert found["native"].state == "whole" and found["native"].bytes > 10**6
    assert "--resume" in found["-"].state
    code, out, _ = answered(capsys, "models", str(tmp_path), "--json")
    assert code == 0 and {one["model"] for one in json.loads(out)} >= {"demo", demo}
    assert "demo\tofficial\t" in answered(capsys, "models", str(tmp_path))[1]
