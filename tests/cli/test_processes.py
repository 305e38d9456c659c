"""Real processes: entry points, pipes that close, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import Checkpoints

COMMAND = [sys.executable, "-m", "dsv4_mlx"]


@pytest.fixture
def folder(checkpoints: Checkpoints) -> str:
    return str(checkpoints.converted("small"))


def start(arguments: list[str], stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_exit_codes_and_streams(folder: str, tmp_path: Path) -> None:
    """Success, and bad input, as a shell sees them; no terminal, no input."""
    good = subprocess.run([*COMMAND, "info", folder], capture_output=True, env=environment(), check=False)
    assert (good.returncode, good.stderr) == (0, b"") and good.stdout.startswith(b"DeepSeek V4")
    bad = subprocess.run(
        [*COMMAND, "info", str(tmp_path)], capture_output=True, env=environment(), check=False
    )
    assert (bad.returncode, bad.stdout) == (2, b"") and bad.stderr.startswith(b"error: there is no manifest")


@pytest.mark.parametrize(
    "arguments", [["info", "FOLDER"], ["--help"], ["generate", "FOLDER", "-p", "x", "--think", "off"]]
)
def test_a_reader_that_has_gone_is_no_error(folder: str, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [folder if word == "FOLDER" else word for word in arguments]
    with start(arguments, stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")


def test_an_answer_cut_off_because_nobody_reads_stderr_is_no_success(folder: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [*COMMAND, "generate", folder, "-p", "x", "--think", "on", "--max-tokens", "5", "--seed", "1"]
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writing, env=environment()
    ) as process:
        os.close(writing)
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_generation(folder: str, number: signal.Signals, code: int) -> None:
    arguments = ["generate", folder, "-p", "x", "--think", "off", "--max-tokens", "4000", "--seed", "1"]
    with start([*arguments, "--temperature", "5"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(8), "the answer comes while it is made"
        time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err


def test_the_generator_of_checkpoints_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsv4_mlx.synthetic", str(tmp_path / "x"), "--layers", "2"]
    made = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert made.returncode == 0 and (tmp_path / "x" / "config.json").is_file()
    again = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert again.returncode == 2 and again.stderr.startswith(b"error: ")
