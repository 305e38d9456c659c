"""A model as it lies on disk, before any of its weights is in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from dsv4_mlx.checkpoint.manifest import ExpertTable, Manifest
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.weights.records import RecordMap

Advance = Callable[[int], None]  # so many more bytes have been read


class ArraySource(Protocol):
    """The arrays of a model's files, each handed out once. Use as a context manager."""

    def array(self, file: str, key: str) -> mx.array | None:
        """The array `key` of `file`, evaluated or not; None if the file has none. Raises Dsv4Error."""

    def records(self, block: str, table: ExpertTable) -> mx.array:
        """All expert records of a block, uint32 [count, record_bytes / 4]. Raises Dsv4Error."""

    def finished(self) -> None:
        """Everything has been handed out. Raises InputError if a file was changed meanwhile."""

    def close(self) -> None:
        """Let go of the files."""


class StoredModel(Protocol):
    """A folder that holds a model, its headers checked.

    `manifest` says what the model is made of: read where the folder was converted, made up where it is an
    official checkpoint. Then its recipe is "official", keys are official tensor names, there are no digests.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def manifest(self) -> Manifest: ...

    def tensor_bytes(self) -> dict[str, int]:
        """Stored bytes of every tensor of the manifest. Raises InputError."""

    def expert_bytes(self) -> dict[str, int]:
        """Stored bytes of the routed experts of each block."""

    def record_map(self, block: str) -> RecordMap:
        """Where the expert records of a block ("layers.3") lie. Raises InputError."""

    def arrays(self, advance: Advance) -> ArraySource:
        """Open the files for reading."""
