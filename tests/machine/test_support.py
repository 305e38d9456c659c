"""Machines that can't run it are refused by name, by every command, without MLX: they don't have it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import typer

from dsv4_mlx.cli.main import app, run
from dsv4_mlx.errors import MachineError
from dsv4_mlx.machine import support as platforms
from dsv4_mlx.machine.support import check_supported

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def pretend(
    monkeypatch: pytest.MonkeyPatch, system: str, processor: str, macos: str = "", translated: bool = False
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(platform, "mac_ver", lambda: (macos, ("", "", ""), processor))
    monkeypatch.setattr(platforms, "translated", lambda: translated)


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (("Darwin", "x86_64", "13.6"), "this is an Intel Mac"),
        (("Darwin", "x86_64", "15.1", True), "runs under Rosetta"),
        (("Darwin", "arm64", "13.7.1"), "this is macOS 13.7.1; MLX needs macOS 14"),
        (("Windows", "AMD64"), "this is Windows"),
        (("FreeBSD", "amd64"), "this is FreeBSD"),
        (("", ""), "an unknown system"),
    ],
)
def test_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
    machine: tuple[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, *machine)
    with pytest.raises(MachineError, match=message):
        check_supported()
    assert run(["info", "nowhere"]) == 3
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "next: " in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    "machine",
    [("Darwin", "arm64", "14.0"), ("Darwin", "arm64", "26.1"), ("Darwin", "arm64", ""), ("Linux", "x86_64")],
)
def test_supported(monkeypatch: pytest.MonkeyPatch, machine: tuple[str, str]) -> None:
    pretend(monkeypatch, *machine)
    check_supported()


def test_help_and_version_answer_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, "Windows", "AMD64")
    assert run(["--version"]) == 0
    assert run(["--help"]) == 0
    assert "bench" in capsys.readouterr().out


def test_every_command_refuses_without_mlx() -> None:
    """As on an Intel Mac: importing MLX, or what builds on it, fails."""
    code = f"""
import platform, sys
for name in ("mlx", "mlx.core", "mlx_lm", "deepseek_recipe"):
    sys.modules[name] = None
platform.system = lambda: "Darwin"
platform.machine = lambda: "x86_64"
from dsv4_mlx.cli.main import run
sys.exit(sum(run([name]) != 3 for name in {COMMANDS!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: this is an Intel Mac") == len(COMMANDS) >= 6


def test_rosetta_is_asked_of_the_system() -> None:
    assert platforms.translated() is False or platform.system() == "Darwin"
