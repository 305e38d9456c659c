"""Read the stored goldens and rebuild the checkpoints they were made from. Needs neither torch nor MLX."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4_mlx.synthetic import write_checkpoint
from oracle.official import OfficialCheckpoint

Array = NDArray[Any]

FOLDER = Path(__file__).parent.parent / "golden"
MANIFEST = FOLDER / "manifest.json"
COMMAND = "PYTHONPATH=tests:. python -m oracle.make_goldens"
SIZE_LIMIT = 1_500_000  # bytes of everything in FOLDER


class StaleGolden(AssertionError):
    """A golden no longer belongs to what is around it; the message says how to make it again."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}\nregenerate (torch and transformers needed): {COMMAND}")


@dataclass(frozen=True)
class Prompt:
    """What is kept of the oracle's logits for one prompt. Row t is the prediction after `tokens[t]`.

    All positions: `top1`, `gap` (first minus second logit), `position_std`, and `column_logits[t, i]` for
    vocabulary entry `columns[i]`. Chosen positions: `row_logits[i]` is the whole row of position `rows[i]`.
    """

    name: str
    tokens: Array
    split: int
    std: float  # of all logits of the prompt: the unit of every tolerance
    top1: Array
    gap: Array
    position_std: Array
    rows: Array
    row_logits: Array
    columns: Array
    column_logits: Array


@dataclass(frozen=True)
class Golden:
    name: str
    config: dict[str, Any]
    seed: int
    checkpoint_sha256: str
    prompts: tuple[Prompt, ...]


def manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MANIFEST.read_text())
    return content


def names() -> tuple[str, ...]:
    return tuple(manifest()["cases"])


def load(name: str) -> Golden:
    """The golden of one case; raises StaleGolden if the file is not the one the manifest describes."""
    entry = manifest()["cases"][name]
    path = FOLDER / f"{name}.npz"
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry["npz_sha256"]:
        raise StaleGolden(f"{path.name} differs from its digest in {MANIFEST.name}")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    prompts = []
    for index, facts in enumerate(entry["prompts"]):
        parts = {key.split(".", 1)[1]: arrays[key] for key in arrays if key.startswith(f"{index}.")}
        parts["std"] = float(parts["std"])
        prompts.append(Prompt(name=f"{name}[{index}]", split=facts["split"], **parts))
    return Golden(name, entry["config"], entry["seed"], entry["checkpoint_sha256"], tuple(prompts))


def summary(tokens: Array, logits: Array, columns: int = 16, rows: int = 24) -> dict[str, Array]:
    """The arrays stored for one prompt; the inverse of what `load` puts into `Prompt`.

    Kept rows are the edges where state changes hands (first tokens, groups of 4, windows of 128, the end)
    and otherwise evenly spread.
    """
    length, vocabulary = logits.shape
    edges = [t for t in (0, 1, 3, 4, 7, 8, 127, 128, length - 2, length - 1) if 0 <= t < length]
    spread = np.linspace(0, length - 1, min(rows, length)).round().astype(int).tolist()
    spare = [t for t in spread if t not in edges][:: 2 if length > 2 * rows else 1]
    kept = np.unique([*edges, *spare][:rows])
    chosen = np.unique(np.linspace(0, vocabulary - 1, columns).round().astype(int))
    ranked = np.sort(logits, axis=1)
    return {
        "tokens": np.asarray(tokens, dtype=np.int32),
        "std": np.asarray(logits.std(dtype=np.float64)),
        "top1": logits.argmax(axis=1).astype(np.int32),
        "gap": (ranked[:, -1] - ranked[:, -2]).astype(np.float32),
        "position_std": logits.std(axis=1, dtype=np.float64).astype(np.float32),
        "rows": kept.astype(np.int32),
        "row_logits": logits[kept].astype(np.float32),
        "columns": chosen.astype(np.int32),
        "column_logits": logits[:, chosen].astype(np.float32),
    }


def write(folder: Path, config: Mapping[str, Any], seed: int) -> OfficialCheckpoint:
    """Write a synthetic checkpoint and open it with the oracle's own reader."""
    write_checkpoint(folder, dict(config), seed)
    return OfficialCheckpoint(folder)


def checkpoint(golden: Golden, cache: Path) -> Path:
    """The official-format folder that `golden` was made from, written below `cache` if it is not there.

    Raises StaleGolden if the generator writes other bytes than it did then.
    """
    folder = cache / f"{golden.name}-{golden.checkpoint_sha256[:16]}"
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    if write(unfinished, golden.config, golden.seed).digest() != golden.checkpoint_sha256:
        raise StaleGolden(f"dsv4_mlx.synthetic no longer writes the checkpoint of golden {golden.name!r}")
    return unfinished.rename(folder)
