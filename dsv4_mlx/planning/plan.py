"""Options for one machine: every way to store the model, what it takes, how it runs, what to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsv4_mlx.checkpoint.manifest import OFFICIAL
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.convert.trial import ConversionThroughput
from dsv4_mlx.machine.macs import highest_gpu_limit
from dsv4_mlx.machine.units import size
from dsv4_mlx.planning.candidates import DEFAULT, RELEASES, Candidate
from dsv4_mlx.planning.fit import Fit, MemoryBudget, budget_of_mac, fit
from dsv4_mlx.planning.speed import Prediction, Speeds, predict

OPEN_SHARDS = 2  # with --delete-source: one being converted, one being downloaded


@dataclass(frozen=True)
class DiskNeed:
    """Bytes at each moment: of all files where the checkpoint is here, of the weights where only its config
    is known. Then text files come to it, and the headers of the download: some 30 MB.

    `peak`: at most at any time. `peak_deleting`: the same if shards are deleted once they are converted.
    """

    download: int
    peak: int
    peak_deleting: int
    kept: int


@dataclass(frozen=True)
class ConversionCost:
    """Converting on this machine, predicted from some seconds of it; bytes of memory at most."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Option:
    """One way. `download_seconds` None where the network's speed is not known. `commands` run it.

    `making` None where nothing is converted, or this machine's throughput is not known.
    """

    name: str
    disk: DiskNeed
    fit: Fit
    touched: int
    prediction: Prediction | None
    download_seconds: float | None
    making: ConversionCost | None
    commands: tuple[str, ...]


@dataclass(frozen=True)
class ModelPlan:
    """Bytes: `limit` that a model may use, `taken` that other programs hold of them now. `best` is the name
    of the option to take; None if none runs."""

    limit: int
    taken: int
    options: tuple[Option, ...]
    best: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values: bytes, seconds, tokens per second."""
        return {
            "limit": self.limit,
            "held_by_other_programs": self.taken,
            "best": self.best,
            "predicted": "tokens per second are predicted, not calibrated yet; nothing was run",
            "options": [asdict(option) | {"fit": option.fit.to_json()} for option in self.options],
        }


def plan(
    ways: Sequence[Candidate],
    config: ModelConfig,
    budget: MemoryBudget,
    speeds: Speeds,
    folder: str = "",
    *,
    repository: str = DEFAULT,
    throughput: ConversionThroughput | None = None,
    place: str = "~/models",
) -> ModelPlan:
    """`folder`: where the model is already, if it is; it then needs no download, else `repository` is where
    it comes from. `place`: the folder that gets what is made. `throughput`: of converting there.
    """
    options = []
    for way in ways:
        found = fit(way.stored, config, budget)
        prediction = predict(way, found, config, speeds, budget.element, budget.page_cache)
        options.append(_option(way, found, prediction, speeds, folder, repository, throughput, place))
    return ModelPlan(budget.limit, budget.taken, tuple(options), _best(options))


def disk(way: Candidate, here: bool) -> DiskNeed:
    """`here`: the official files are on this machine already; they are not counted unless they are used."""
    official, stored = sum(way.shards), way.stored.bytes + way.texts
    if way.name == OFFICIAL:
        return DiskNeed(0 if here else official, stored, stored, stored)
    if here:
        return DiskNeed(0, stored, stored, stored)
    two = sum(sorted(way.shards)[-OPEN_SHARDS:])
    return DiskNeed(official, official + stored, stored + two, stored)


def _option(
    way: Candidate, found: Fit, prediction: Prediction | None, speeds: Speeds, folder: str,
    repository: str, throughput: ConversionThroughput | None, place: str,
) -> Option:  # fmt: skip
    needed = disk(way, bool(folder))
    seconds = needed.download / speeds.network if speeds.network and needed.download else None
    if needed.download == 0:
        seconds = 0.0
    making = None
    if throughput is not None and way.written is not None:
        making = ConversionCost(way.written.seconds(throughput), throughput.memory[way.name])
    commands = _commands(way, found, folder, repository, place)
    return Option(way.name, needed, found, way.touched, prediction, seconds, making, commands)


def _commands(way: Candidate, found: Fit, folder: str, repository: str, place: str) -> tuple[str, ...]:
    source, target = _quoted(folder) or repository, _quoted(f"{place}/{RELEASES[repository]}-{way.name}")
    lines = []
    if not way.shards or way.name == OFFICIAL and folder:
        target = source
    elif way.name == OFFICIAL:
        lines.append(f"dsv4-mlx download {source} {target}")
    else:
        delete = "" if folder else " --delete-source"
        lines.append(f"dsv4-mlx convert {source} {target} --recipe {way.name}{delete}")
    if found.placement != "too large":
        pages = f" --expert-memory {found.slots}x" if found.placement == "paged" else ""
        lines.append(f"dsv4-mlx chat {target} --context {found.context}{pages}")
    return tuple(lines)


def with_more_memory(
    ways: Sequence[Candidate], config: ModelConfig, memory: int, budget: MemoryBudget
) -> list[str]:
    """Sentences: how what would run better does with macOS 26, and what a limit raised by hand would keep in
    memory as a whole. Empty where neither lets a model use more of a Mac's `memory` than `budget`."""
    highest = highest_gpu_limit(memory)
    raised = f"sudo sysctl iogpu.wired_limit_mb={highest >> 20} lets it use {{}} until the next restart"
    found = []
    for more, sentence, every in (
        (budget_of_mac(memory, macos=26), "with macOS 26 a model may use {}", True),
        (budget_of_mac(memory, working_set=highest), raised, False),
    ):
        fits = [[fit(way.stored, config, allowed) for allowed in (more, budget)] for way in ways]
        better = [
            f"{new.name} {new.describe()}" for new, old in fits
            if new.rank > old.rank and (every or new.placement == "resident" != old.placement)
        ]  # fmt: skip
        if more.limit > budget.limit and better:
            found.append(f"{sentence.format(size(more.limit))}: {', '.join(better)}")
    return found


def _quoted(path: str) -> str:
    """For a shell, which still has to expand the tilde. An empty path stays empty."""
    if path.startswith("~/"):
        return "~/" + shlex.quote(path[2:])
    return shlex.quote(path) if path else ""


def _best(options: Sequence[Option]) -> str | None:
    """All experts in memory before some, nothing lost before something, then the least to read."""
    running = [option for option in options if option.fit.placement != "too large"]
    if not running:
        return None
    order = {"native": 0, "4bit": 1, OFFICIAL: 2}
    resident = [option for option in running if option.fit.placement == "resident"]
    return min(resident or running, key=lambda option: order.get(option.name, 0)).name
