"""dsv4-mlx demo"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress
from dsv4_mlx.cli.options import cache_folder
from dsv4_mlx.errors import Dsv4Error, MachineError

PROMPT = "What is a sliding window?"
TOKENS = 24


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
    """Make the demonstration's checkpoint and model in `folder`, or find them there undamaged."""
    from dsv4_mlx.convert import convert
    from dsv4_mlx.synthetic import small_config, write_checkpoint

    checkpoint, model = folder / "official", folder / "converted"
    if _intact(checkpoint, model):
        return Demo(checkpoint, model, reused=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (model, checkpoint):
            if old.exists():
                shutil.rmtree(old)
    except OSError as error:
        raise MachineError(
            f"the demo can't be built here: {error.strerror}", where=folder, next="choose a folder with --dir"
        ) from None
    write_checkpoint(checkpoint, small_config(), 0)
    with progress("converting") as show:
        convert(checkpoint, model, progress=lambda done, total, file: show(done, total))
    return Demo(checkpoint, model, reused=False)


def _intact(checkpoint: Path, model: Path) -> bool:
    """Whether `model` is the finished conversion of `checkpoint` and its bytes have their digests."""
    from dsv4_mlx.convert import convert

    if not checkpoint.is_dir() or not model.is_dir():
        return False
    try:
        return bool(convert(checkpoint, model, resume=True).status == "nothing to do")
    except Dsv4Error:
        return False
