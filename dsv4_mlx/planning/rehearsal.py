"""How fast this machine converts: some seconds of a conversion by each recipe, each in a process of its own.

A process of its own, since what it holds in memory is one of the answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import dsv4_mlx
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.trial import ConversionThroughput, Trial
from dsv4_mlx.machine.disks import free_bytes
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint

SECONDS = 5.0
ROOM = 4 << 30  # free bytes below which nothing is written: at most 1.5 GB of them are used
_LIMIT = 60.0  # seconds for each recipe
# typer reads these arguments as it reads those of `convert`: what that holds in memory counts.
_CODE = (
    "import os, sys; os.setsid(); sys.path[:0] = [{root!r}]; import typer, {program}; "
    "from dsv4_mlx.convert.trial import main; typer.run(main)"
)


def throughput_here(
    official: Path | None, place: Path, seconds: float = SECONDS, program: str = "dsv4_mlx.convert"
) -> ConversionThroughput | str:
    """The throughput of converting the checkpoint in `official` into a folder at `place`, or why it isn't
    known.

    `program`: a module that is imported first, so that its memory counts.
    None stands for V4-Flash: then a sixteenth of one of its layers is made at `place` and converted. What is
    written there is deleted.
    """
    if not place.is_dir() or free_bytes(place) < ROOM:
        return f"less than {ROOM >> 30} GiB are free in {place}"
    try:
        with ExitStack() as stack:
            if official is None:
                folder = stack.enter_context(TemporaryDirectory(dir=place, prefix=".dsv4-mlx-"))
                official = Path(folder) / "sample"
                write_checkpoint(official, sample_config())
            trials: dict[str, Trial] = {}
            for recipe in RECIPES:
                found = _in_child(official, place, seconds / len(RECIPES), recipe, program)
                if isinstance(found, str):
                    return found
                trials[recipe] = found
            copied, quantised = trials["native"], trials["4bit"]
            if copied.rate is None:
                return "the checkpoint has no weights to convert"
            memory = {recipe: trial.memory for recipe, trial in trials.items()}
            return ConversionThroughput(
                min(copied.opening, quantised.opening), copied.rate, quantised.rate, memory
            )
    except OSError as error:
        return f"{place} can't be written to: {error.strerror or error}"


def sample_config() -> dict[str, object]:
    """One layer of V4-Flash at its widths, with a few of its experts and a small vocabulary: 0.4 GB."""
    config = cut(release_config("flash", true_size=True), layers=1, experts=16)
    return config | {"num_nextn_predict_layers": 0, "compress_ratios": [0], "vocab_size": 4096}


def _in_child(official: Path, place: Path, seconds: float, recipe: str, program: str) -> Trial | str:
    root = str(Path(dsv4_mlx.__file__).parents[1])
    code = _CODE.format(root=root, program=program)
    command = [sys.executable, "-P", "-c", code, "--", str(official), str(place), str(seconds), recipe]
    # A session of its own, which it takes: Ctrl-C is for this process, which then ends the child.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        close_fds=False, text=True,
    )  # fmt: skip
    try:
        out, said = process.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        return f"it did not end within {_LIMIT:.0f} s"
    finally:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if process.returncode != 0:
        return (said.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
    return Trial(**json.loads(out))
