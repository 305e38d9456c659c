"""Options for one machine: every way to store the model, what it takes, how it runs, what to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.doctor.fit import Fit, fit
from dsv4_mlx.planning.candidates import OFFICIAL, Candidate
from dsv4_mlx.planning.predict import Prediction, Speeds, predict

OPEN_SHARDS = 2  # with --delete-source: one being converted, one being downloaded
REPOSITORY = "deepseek-ai/DeepSeek-V4-Flash"


@dataclass(frozen=True)
class Disk:
    """Bytes of weight files at each moment. Text files come to it, and the headers of a download that was
    not read yet: some 20 MB.

    `peak`: at most at any time. `peak_deleting`: the same if shards are deleted once they are converted.
    """

    download: int
    peak: int
    peak_deleting: int
    kept: int


@dataclass(frozen=True)
class Option:
    """One way. `download_seconds` None where the network's speed is not known. `commands` run it."""

    name: str
    disk: Disk
    fit: Fit
    touched: int
    prediction: Prediction | None
    download_seconds: float | None
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """`best` is the name of the option to take; None if none runs."""

    limit: int
    options: tuple[Option, ...]
    best: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values: bytes, seconds, tokens per second."""
        return {
            "limit": self.limit,
            "best": self.best,
            "predicted": "tokens per second are bounds from bytes; nothing was run",
            "options": [asdict(option) for option in self.options],
        }


def plan(
    ways: Sequence[Candidate],
    config: ModelConfig,
    limit: int,
    element: int,
    speeds: Speeds,
    folder: str = "",
) -> Plan:
    """`limit`: bytes the model may use; `element`: bytes of a number in the state's rows.

    `folder`: where the model is already, if it is; it then needs no download.
    """
    options = [_option(way, config, limit, element, speeds, folder) for way in ways]
    return Plan(limit, tuple(options), _best(options))


def disk(way: Candidate, here: bool) -> Disk:
    """`here`: the official files are on this machine already; they are not counted unless they are used."""
    official, stored = sum(way.shards), way.stored.bytes
    if way.name == OFFICIAL:
        return Disk(0 if here else official, official, official, official)
    if here:
        return Disk(0, stored, stored, stored)
    two = sum(sorted(way.shards)[-OPEN_SHARDS:])
    return Disk(official, official + stored, stored + two, stored)


def _option(
    way: Candidate, config: ModelConfig, limit: int, element: int, speeds: Speeds, folder: str
) -> Option:
    found = fit(way.stored, config, limit, element)
    needed = disk(way, bool(folder))
    seconds = needed.download / speeds.network if speeds.network and needed.download else None
    if needed.download == 0:
        seconds = 0.0
    prediction = predict(way, found, speeds)
    return Option(way.name, needed, found, way.touched, prediction, seconds, _commands(way, found, folder))


def _commands(way: Candidate, found: Fit, folder: str) -> tuple[str, ...]:
    source, converted = folder or REPOSITORY, f"~/models/flash-{way.name}"
    lines = []
    if not way.shards:
        target = folder
    elif way.name == OFFICIAL:
        target = folder or "~/models/flash-official"
        lines += [] if folder else [f"dsv4-mlx download {source} {target}"]
    else:
        target = converted
        delete = "" if folder else " --delete-source"
        lines.append(f"dsv4-mlx convert {source} {target} --recipe {way.name}{delete}")
    if found.how != "too large":
        pages = f" --expert-memory {found.slots}x" if found.how == "paged" else ""
        lines.append(f"dsv4-mlx chat {target} --context {found.context}{pages}")
    return tuple(lines)


def _best(options: Sequence[Option]) -> str | None:
    """All experts in memory before some, nothing lost before something, then the least to read."""
    running = [option for option in options if option.fit.how != "too large"]
    if not running:
        return None
    order = {"native": 0, "4bit": 1, OFFICIAL: 2}
    resident = [option for option in running if option.fit.how == "resident"]
    return min(resident or running, key=lambda option: order.get(option.name, 0)).name
