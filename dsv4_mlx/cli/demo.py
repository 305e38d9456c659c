"""dsv4-mlx demo"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress, size
from dsv4_mlx.cli.options import cache_folder

PROMPT = "What is a sliding window?"


@dataclass(frozen=True)
class Demo:
    """Where the demonstration's files are, and whether this call made them."""

    checkpoint: Path
    model: Path
    made: bool


def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where to build. Default: the user's cache folder."),
    ] = None,
) -> None:
    """Build a small official checkpoint, convert it and generate in each mode: the whole path in a minute.

    Its weights are random, so what it says means nothing; that it runs is the point.

    Example: dsv4-mlx demo
    """
    from dsv4_mlx.engine import Engine, EngineOptions, SamplingOptions
    from dsv4_mlx.engine.generate import answer

    built = build(folder if folder is not None else cache_folder() / "demo")
    print(f"official checkpoint  {built.checkpoint}" + ("" if built.made else "  (reused)"))
    print(f"converted model      {built.model}" + ("" if built.made else "  (reused)"))
    with progress("loading") as loading:
        engine = Engine.open(built.model, EngineOptions(), loading)
    for think in ("off", "on", "max"):
        options = SamplingOptions(seed=1)
        pieces = list(answer(engine, engine.session(), PROMPT, think, options, max_tokens=24))
        said = "".join(piece.text for piece in pieces)
        print(f"\n--think {think}, 24 tokens of random weights:\n  {said!r}")
    print(f"\nnext: dsv4-mlx info demo; dsv4-mlx generate demo -p '{PROMPT}' --max-tokens 40")
    sys.stdout.flush()


def build(folder: Path) -> Demo:
    """Make the demonstration's checkpoint and model in `folder`, or find both intact there."""
    from dsv4_mlx.convert import convert, verify
    from dsv4_mlx.synthetic import default_config, write_checkpoint

    checkpoint, model = folder / "official", folder / "converted"
    if _intact(model, checkpoint, verify):
        return Demo(checkpoint, model, made=False)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (model, checkpoint):
        if old.exists():
            shutil.rmtree(old)
    # Built beside its place and renamed: an interrupted build is never mistaken for a finished one.
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as temporary:
        write_checkpoint(Path(temporary) / "official", default_config(), 0)
        (Path(temporary) / "official").rename(checkpoint)
        with progress("converting") as show:
            summary = convert(checkpoint, Path(temporary) / "converted", "native", progress=show)
        (Path(temporary) / "converted").rename(model)
    print(f"made {summary.tensors} tensors, {size(summary.bytes_written)}", file=sys.stderr)
    return Demo(checkpoint, model, made=True)
