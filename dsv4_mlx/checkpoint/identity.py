"""What tells one official checkpoint from another, read in about a second.

The identity is the SHA-256 over the SHA-256 of config, tokenizer and index, and for every shard its size,
its whole header, and a sample of its data: SAMPLES pieces of PIECE bytes, evenly spread from the first byte
to the last. A shard smaller than the sample is read whole.

It can tell: other weights (another training run, release or seed differs nearly everywhere), another config
or tokenizer, another division into shards, a truncated or re-downloaded mixture of revisions.
It can't tell: a few bytes changed between the sampled pieces. That is damage, and damage is found where all
bytes are read: `verify --against`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.header import Header
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.errors import MachineError

SAMPLES = 64
PIECE = 4096


Pieces = Callable[[str, Header], Iterable[bytes]]  # shard -> its sample, piece by piece


def identify(source: Source, pieces: Pieces | None = None) -> dict[str, Any]:
    """The source's identity as it stands in the manifest: JSON-able, the same on every machine.

    `pieces` reads the samples where the shards are not in the folder.
    """
    read = pieces or (lambda name, header: _pieces(source.folder / name, header))
    texts = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(source.texts.items())}
    shards = {
        name: {"bytes": header.size, "header": header.digest, "sample": _digest(read(name, header))}
        for name, header in source.shards.items()
    }
    whole = hashlib.sha256()
    for part in (source.index_digest, *texts.values()):
        whole.update(part.encode())
    for name, facts in shards.items():
        whole.update(f"{name}:{facts['bytes']}:{facts['header']}:{facts['sample']}".encode())
    return {"identity": whole.hexdigest(), "index": source.index_digest, "texts": texts, "shards": shards}


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path, header: Header) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            for start in sample_points(header.data_start, header.size):
                file.seek(start)
                yield file.read(PIECE)
    except OSError as error:
        raise MachineError(f"the file can't be read: {error.strerror or error}", where=path) from None


def sample_points(start: int, end: int) -> list[int]:
    """Where the pieces begin; the last one ends with the file."""
    if end - start <= SAMPLES * PIECE:
        return list(range(start, end, PIECE))
    step = (end - start - PIECE) / (SAMPLES - 1)
    return [start + round(i * step) for i in range(SAMPLES)]
