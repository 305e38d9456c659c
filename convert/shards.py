"""Where a conversion's weights come from: a folder that is complete, or one that is being filled."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from typing import Any, Protocol

from dsv4_mlx.checkpoint.identity import identify
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.convert.conversion_plan import ConversionPlan, FilePlan

ADVICE = "check the disk and the file; an interrupted conversion continues with --resume"


class ShardSource(Protocol):
    """Shards, and what is told about them. `facts` are those of checkpoint.identity.identify."""

    source: Source

    @property
    def facts(self) -> dict[str, Any]: ...

    def begin(self, plan: ConversionPlan, kept: Set[str]) -> None:
        """The files of `plan` will be made in this order, but for those in `kept`."""
        return None

    def reader(self) -> SourceReader:
        """Reads shards; it may wait for one."""

    def finished(self, file: str) -> None:
        """That file of the plan is on disk for good."""
        return None


class LocalShards(ShardSource):
    """A complete checkpoint: nothing to do before or after a file."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @cached_property
    def facts(self) -> dict[str, Any]:
        return identify(self.source)

    def reader(self) -> SourceReader:
        return SourceReader(self.source, ADVICE)


def shards_of(file: FilePlan, source: Source) -> set[str]:
    """The shards that a file of the plan is made from."""
    weights = [target.weight for target in file.targets]
    if file.records is not None:
        weights += [weight for expert in file.records.experts for weight in expert]
    return {source.where[tensor.name] for weight in weights for tensor in weight.tensors()}
