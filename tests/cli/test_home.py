"""`~` is the home folder in every path that every command takes: the tree of commands is walked."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from dsv4_mlx.cli.main import app, run
from dsv4_mlx.errors import InputError

FOLDERS = ("MODEL", "[MODEL]", "MODEL2", "SOURCE", "DIR")  # texts that name one
TREE = {
    found.name or getattr(found.callback, "__name__", ""): found.callback for found in app.registered_commands
}


def paths() -> Iterator[tuple[str, str, bool]]:
    """Command, parameter, and whether it comes as a Path, of every parameter that takes a path."""
    for command, call in TREE.items():
        assert call is not None
        for name, parameter in inspect.signature(call, eval_str=True).parameters.items():
            kind, *notes = get_args(parameter.annotation) or (parameter.annotation,)
            if kind is Path or Path in get_args(kind):
                yield command, name, True
            elif (kind is str or str in get_args(kind)) and name != "repository":
                names = [getattr(note, "metavar", None) for note in notes]
                if name == "source" or set(names) & set(FOLDERS):
                    yield command, name, False


FOUND = list(paths())


def test_the_walk_finds_paths_in_most_commands() -> None:
    assert len({command for command, _, _ in FOUND}) >= len(TREE) - 1  # version aside
    assert ("convert", "target", True) in FOUND and ("verify", "against", False) in FOUND
    assert len(FOUND) >= 30


@pytest.mark.parametrize(("command", "name"), [(c, n) for c, n, path in FOUND if path])
def test_a_path_is_home_before_the_command_sees_it(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    call: Any = TREE[command]
    got: dict[str, Any] = {}
    body = call.__wrapped__
    cell = next(c for c in call.__closure__ if c.cell_contents is body)
    monkeypatch.setattr(cell, "cell_contents", lambda **given: got.update(given))
    call(**{name: Path("~/a b/c")})
    assert got == {name: tmp_path / "a b" / "c"}


@pytest.mark.parametrize(("command", "name"), [(c, n) for c, n, path in FOUND if not path])
def test_a_folder_named_by_a_text_is_looked_for_at_home(
    command: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the command asks the system for under `~` lies at home; nothing is made or looked for in ./~."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    (here / "~" / "marked").mkdir(parents=True)
    file = tmp_path / "file"
    file.write_text("[[0, 5]]")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    asked: list[str] = []

    def seen(given: Path | str) -> Path:
        asked.append(str(given))
        if "marked" in str(given):
            raise InputError("reached")
        return here

    for module in [
        m for n, m in list(sys.modules.items()) if n.startswith("dsv4_mlx.") and hasattr(m, "at_home")
    ]:
        if module.__name__ not in ("dsv4_mlx.machine.disks", "dsv4_mlx.cli.main"):
            monkeypatch.setattr(module, "at_home", seen)
    commands: Any = typer.main.get_command(app)
    words = [command]
    for parameter in commands.commands[command].params:
        given, option = "~/marked" if parameter.name == name else "x", parameter.param_type_name == "option"
        if parameter.name == name or parameter.name in ("model", "prompt") and command != "plan":
            words += [parameter.opts[0], given] if option else [given]
        elif parameter.required:
            place = file if parameter.name != "out" else tmp_path / "out"
            words += [parameter.opts[0], str(place)] if option else [str(place)]
    assert run(words) == 2
    assert asked[-1] == "~/marked", capsys.readouterr().err


def test_a_home_that_is_not_known_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["info", "~nobody-here/m"], ["convert", str(tmp_path), "~nobody-here/m"]):
        assert run(words) == 2
        assert "'~nobody-here/m' begins with a home folder that is not known" in capsys.readouterr().err
