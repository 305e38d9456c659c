"""How fast this machine converts: some seconds of a conversion, in a process of its own.

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
from dsv4_mlx.convert import Pace
from dsv4_mlx.doctor.measure import free_bytes
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint

SECONDS = 5.0
ROOM = 4 << 30  # free bytes below which nothing is written: at most a quarter of them is used
_LIMIT = 60.0  # seconds for all of it
_CODE = (
    "import sys; sys.path[:0] = [{root!r}]; from dsv4_mlx.convert.rehearse import main; main(*sys.argv[1:])"
)


def pace_here(official: Path | None, place: Path, seconds: float = SECONDS) -> Pace | str:
    """The pace of converting the checkpoint in `official` into a folder at `place`, or why it is not known.

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
            return _in_child(official, place, seconds)
    except OSError as error:
        return f"{place} can't be written to: {error.strerror or error}"


def sample_config() -> dict[str, object]:
    """One layer of V4-Flash at its widths, with a few of its experts and a small vocabulary: 0.4 GB."""
    config = cut(release_config("flash", true_size=True), layers=1, experts=16)
    return config | {"num_nextn_predict_layers": 0, "compress_ratios": [0], "vocab_size": 4096}


def _in_child(official: Path, place: Path, seconds: float) -> Pace | str:
    root = str(Path(dsv4_mlx.__file__).parents[1])
    command = [sys.executable, "-P", "-c", _CODE.format(root=root), str(official), str(place), str(seconds)]
    # A session of its own: Ctrl-C is for this process, which then ends the child.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, text=True,
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
    return Pace(**json.loads(out))
