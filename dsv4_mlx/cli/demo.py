"""dsv4-mlx demo"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress
from dsv4_mlx.cli.option_groups import trusted
from dsv4_mlx.cli.options import cache_folder
from dsv4_mlx.errors import InputError, MachineError

PROMPT = "What is the sliding window?"
TOKENS = 120
RECORD = "demo.json"  # the digests of what the demo has made, and of what it was made from
MODEL_ID = "dsv4-demo"
SHIPPED = Path(__file__).resolve().parent.parent / "demo"  # the trained checkpoint, official layout


@dataclass(frozen=True)
class Demo:
    """Where the demonstration's files are, and whether they were there already."""

    checkpoint: Path
    model: Path
    reused: bool


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

    built = build(folder if folder is not None else cache_folder() / "demo")
    note = "  (reused)" if built.reused else ""
    print(f"official checkpoint  {built.checkpoint}")
    print(f"converted model      {built.model}{note}")
    ops = trusted()
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


def build(folder: Path) -> Demo:
    """Convert the shipped checkpoint into `folder`, or find that done and undamaged.

    Raises InputError rather than touch a folder of that name that it has not made.
    """
    model, record = folder / MODEL_ID, folder / RECORD
    if _intact(SHIPPED, model, record):
        return Demo(SHIPPED, model, reused=True)
    from dsv4_mlx.convert.run import convert

    try:
        _clear(folder, model)
        record.write_text("{}\n", encoding="utf-8")  # from here on the folder is ours to delete
        with progress("converting") as show:
            convert(SHIPPED, model, progress=lambda done, total, file: show(done, total))
        record.write_text(json.dumps(_digests(SHIPPED, model), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"the demo can't be built here: {error.strerror}", where=folder, next="choose a folder with --dir"
        ) from None
    return Demo(SHIPPED, model, reused=False)


def _clear(folder: Path, old: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not old.exists():
        return
    if not (folder / RECORD).is_file():
        raise InputError(
            f"the demo would have to replace {old.name!r}, which it has not made",
            where=folder,
            next="choose another folder with --dir",
        )
    shutil.rmtree(old)


def _intact(checkpoint: Path, model: Path, record: Path) -> bool:
    """Whether every byte of both folders is what an earlier run has recorded."""
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        return bool(recorded) and bool(recorded == _digests(checkpoint, model))
    except (OSError, ValueError):
        return False


def _digests(checkpoint: Path, model: Path) -> dict[str, str]:
    found = {}
    for name, folder in (("official", checkpoint), ("converted", model)):
        for path in sorted(folder.rglob("*")):
            at = f"{name}/{path.relative_to(folder).as_posix()}"
            found[at] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
