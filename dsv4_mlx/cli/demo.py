"""dsv4-mlx demo"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress
from dsv4_mlx.cli.options import cache_folder
from dsv4_mlx.errors import InputError, MachineError

PROMPT = "What is a sliding window?"
TOKENS = 24
RECORD = "demo.json"  # the digests of what the demo has made


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
    """Build a small official checkpoint, convert it and generate in each mode: the whole path in a minute.

    Its weights are random, so what it says means nothing; that it runs is the point.

    Example: dsv4-mlx demo --dir /tmp/dsv4-demo
    """
    from dsv4_mlx.chat.prompt import THINK
    from dsv4_mlx.engine import Engine, EngineOptions, SamplingOptions
    from dsv4_mlx.engine.generate import answer

    built = build(folder if folder is not None else cache_folder() / "demo")
    note = "  (reused)" if built.reused else ""
    print(f"official checkpoint  {built.checkpoint}{note}")
    print(f"converted model      {built.model}{note}")
    with progress("loading") as loading:
        engine = Engine.open(built.model, EngineOptions(), loading)
    for think in THINK:
        options = SamplingOptions(seed=1)
        pieces = answer(engine, engine.session(), PROMPT, think, options, max_tokens=TOKENS)
        said = "".join(piece.text for piece in pieces)
        print(f"\n--think {think}, {TOKENS} tokens of random weights:\n  {said!r}")
    print(f"\nnext: dsv4-mlx info {built.model}", flush=True)


def build(folder: Path) -> Demo:
    """Make the demonstration's checkpoint and model in `folder`, or find them there undamaged.

    Raises InputError rather than touch folders of those names that it has not made.
    """
    from dsv4_mlx.convert import convert
    from dsv4_mlx.synthetic import small_config, write_checkpoint

    checkpoint, model, record = folder / "official", folder / "converted", folder / RECORD
    if _intact(folder):
        return Demo(checkpoint, model, reused=True)
    try:
        _clear(folder, (checkpoint, model))
        record.write_text("{}\n", encoding="utf-8")  # from here on both folders are ours to delete
        write_checkpoint(checkpoint, small_config(), 0)
        with progress("converting") as show:
            convert(checkpoint, model, progress=lambda done, total, file: show(done, total))
        record.write_text(json.dumps(_digests(folder), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"the demo can't be built here: {error.strerror}", where=folder, next="choose a folder with --dir"
        ) from None
    return Demo(checkpoint, model, reused=False)


def _clear(folder: Path, ours: tuple[Path, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in ours:
        if not old.exists():
            continue
        if not (folder / RECORD).is_file():
            raise InputError(
                f"the demo would have to replace {old.name!r}, which it has not made",
                where=folder,
                next="choose another folder with --dir",
            )
        shutil.rmtree(old)


def _intact(folder: Path) -> bool:
    """Whether every byte of both folders is what an earlier run has recorded."""
    try:
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return bool(recorded) and bool(recorded == _digests(folder))
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for name in ("official", "converted") for path in (folder / name).rglob("*"))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
