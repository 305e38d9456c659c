"""dsv4-mlx demo"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress
from dsv4_mlx.cli.option_groups import trusted
from dsv4_mlx.hub.models import build
from dsv4_mlx.machine.support import cache_folder

PROMPT = "What is the sliding window?"
TOKENS = 120


def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where to build. Default: the user's cache folder."),
    ] = None,
) -> None:
    """Convert the small model that ships with this package and ask it in each mode: a minute, no download.

    It knows this program and little else. MODEL may be `demo` in every command.

    Example: dsv4-mlx demo --dir /tmp/dsv4-demo
    """
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
    from dsv4_mlx.engine.generate import answer
    from dsv4_mlx.tokenizer.template import THINK

    with progress("converting") as show:
        built = build(folder if folder is not None else cache_folder() / "demo", show)
    note = "  (reused)" if built.reused else ""
    print(f"official checkpoint  {built.checkpoint}")
    print(f"converted model      {built.model}{note}")
    ops = trusted(built.model).ops
    with progress("loading") as loading:
        engine = Engine.open(built.model, EngineOptions(ops=ops), loading)
    print(f"\n{PROMPT}")
    for think in THINK:
        options = SamplingOptions(temperature=0.0)
        pieces = list(answer(engine, engine.session(), PROMPT, think, options, max_tokens=TOKENS))
        said = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "answer")}
        print(f"\n--think {think}")
        for kind, text in said.items():
            if text:
                print(f"  {kind}: {text}")
    model = "demo" if folder is None else shlex.quote(str(built.model))
    print(f"\nnext: {program()} chat {model}", flush=True)


def program() -> str:
    """This command as it can be typed again: by its name where the shell finds it, else by its path.

    `make demo` installs into an environment that nobody has activated.
    """
    name = "dsv4-mlx"
    called = Path(sys.argv[0])
    if called.name != name:
        return f"{shlex.quote(sys.executable)} -m dsv4_mlx"
    found = shutil.which(name)
    same = found is not None and called.exists() and os.path.samefile(found, called)
    return name if same else shlex.quote(str(called))
