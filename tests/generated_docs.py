"""What the documents take from the program: docs/commands.md, and the output of commands they show.

    python tests/generated_docs.py

writes both anew; tests/test_docs.py fails while they are stale. A block of the kind `console` is a session: a
line `$ command` and, where lines follow, exactly what the command writes, stdout and stderr as they come. A
line `...` stands for any lines: what differs from machine to machine. Such a block stays as it is while it
agrees with the program, and is written anew, to be cut again by hand, when it does not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import typer

from dsv4_mlx import __version__
from dsv4_mlx.cli.main import app

ROOT = Path(__file__).parent.parent
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
WIDTH = 100
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRESS = re.compile(
    r"^[a-z][\w ,]*: [\d.]+ (?:[kMGT]?B )?of [\d.]+ .*\n", re.M
)  # console.py, on a slow day
HEAD = """# Commands

Written by `make docs` from the program's own help. MODEL is a converted folder, the official one, or `demo`.

```console
$ dsv4-mlx --version
dsv4-mlx VERSION
```
"""


def documents() -> list[Path]:
    """The pages that a user reads."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """Kind and content of every fenced block: ("sh", "make demo\\n")."""
    return BLOCK.findall(text)


def commands() -> dict[str, typer.core.TyperCommand]:
    """Name -> command, in the order of `dsv4-mlx --help`."""
    group = typer.main.get_command(app)
    found: dict[str, typer.core.TyperCommand] = group.commands  # type: ignore[attr-defined]
    return found


def help_of(name: str) -> str:
    """What `dsv4-mlx NAME --help` prints in a window of 100 columns."""
    command = commands()[name]
    with typer.Context(command, info_name=f"dsv4-mlx {name}", terminal_width=WIDTH) as context:
        return command.get_help(context)


def commands_page() -> str:
    """docs/commands.md as it should be."""
    parts = [
        HEAD.replace("VERSION", __version__),
        "\n".join(f"- [{name}](#{name}): {_first(name)}" for name in commands()) + "\n",
    ]
    parts += [f"## {name}\n\n```text\n{help_of(name).rstrip()}\n```\n" for name in commands()]
    return "\n".join(parts)


def _first(name: str) -> str:
    return " ".join((commands()[name].help or "").split("\n\n")[0].split())


def outputs(block: str) -> list[tuple[str, str]]:
    """A console block's commands, each with what the block says it writes; "" where it says nothing."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.M)
    if parts[0]:
        raise ValueError(f"a console block starts with a command, not with {parts[0]!r}")
    return list(zip(parts[1::2], parts[2::2], strict=True))


def run(command: str) -> str:
    """What the command writes, in the repository, with this environment's `dsv4-mlx` and `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env=os.environ | {"PATH": path, "COLUMNS": str(WIDTH)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise ValueError(f"{command!r} ends with {done.returncode}:\n{done.stdout}")
    return PROGRESS.sub("", done.stdout)


def agrees(shown: str, written: str) -> bool:
    """Whether a document shows what was written; its line `...` takes any lines, or none."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"[ ]*\n" for line in shown.splitlines()
    )
    return re.fullmatch(pattern, written if written.endswith("\n") else written + "\n") is not None


def with_outputs(text: str) -> str:
    """A document with its outputs as the program writes them now."""

    def anew(found: re.Match[str]) -> str:
        if found[1] != "console":
            return found[0]
        lines = []
        for command, shown in outputs(found[2]):
            written = run(command) if shown else ""
            lines.append(f"$ {command}\n{shown if not shown or agrees(shown, written) else written}")
        return f"```console\n{''.join(lines)}```"

    return BLOCK.sub(anew, text)


if __name__ == "__main__":
    COMMANDS_PAGE.write_text(commands_page(), "utf-8")
    for page in documents():
        before = page.read_text("utf-8")
        if (after := with_outputs(before)) != before:
            page.write_text(after, "utf-8")
            print(f"written anew: {page.relative_to(ROOT)}")
