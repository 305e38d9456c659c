"""What tells one official checkpoint from another, read in about a second.

The identity is the SHA-256 over the SHA-256 of config, tokenizer and index, and for every shard its size,
its whole header, and a sample of its data: SAMPLES pieces of PIECE bytes, evenly spread from the first byte
to the last. A shard smaller than the sample is read whole.

It can tell: other weights (another training run, release or seed differs nearly everywhere), another config
or tokenizer, another division into shards, a truncated or re-downloaded mixture of revisions.
It can't tell: a few bytes changed between the sampled pieces. That is damage, and damage is found where all
bytes are read: `verify --against`.

Beside the identity: the digests that the Hub lists for the files of a folder that was downloaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.header import Header
from dsv4_mlx.checkpoint.source import Source
from dsv4_mlx.errors import MachineError

SAMPLES = 64
PIECE = 4096
STATE = ".hub"  # in a folder that this program filled from the Hub: what is known of its files
_LISTED = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # SHA-1 of git, or SHA-256
_BLOCK = 8 << 20  # bytes hashed at a time


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
    facts = {"index": source.index_digest, "texts": texts, "shards": shards}
    return {"identity": identity_of(facts), **facts}


def identity_of(facts: Mapping[str, Any]) -> str | None:
    """The identity that follows from all else that `identify` tells; None from what it can't have told."""
    whole = hashlib.sha256()
    try:
        for part in (facts["index"], *facts["texts"].values()):
            whole.update(part.encode())
        for name, shard in facts["shards"].items():
            whole.update(f"{name}:{shard['bytes']}:{shard['header']}:{shard['sample']}".encode())
    except (LookupError, TypeError, AttributeError):
        return None
    return whole.hexdigest()


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


def listed_digest(folder: Path, name: str) -> str | None:
    """The digest that the Hub lists for a file, as its client or this program kept it; None if none is here.

    64 digits are a SHA-256; 40, of small files, the SHA-1 of a git blob. In the Hub's cache a file is a link
    to one that is named by its digest; a folder that was downloaded to has a small file for each.
    """
    path = folder / name
    if path.is_symlink() and _LISTED.fullmatch(path.resolve().name):
        return path.resolve().name
    try:
        found = json.loads((folder / STATE / f"{name}.ok").read_text("utf-8"))[0]
    except (OSError, ValueError, LookupError, TypeError):
        try:
            kept = folder / ".cache/huggingface/download" / f"{name}.metadata"
            found = kept.read_text("utf-8").splitlines()[1].strip()
        except (OSError, ValueError, LookupError):
            return None
    return found if isinstance(found, str) and _LISTED.fullmatch(found) else None


def downloaded(folder: Path) -> dict[str, str]:
    """file -> the digest that the Hub lists, of the files that are here, and of those that this program
    fetched and that are gone."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir()}
    names |= {path.name.removesuffix(".ok") for path in (folder / STATE).glob("*.ok")}
    found = {name: listed_digest(folder, name) for name in sorted(names)}
    return {name: digest for name, digest in found.items() if digest is not None}


def stored_digest(path: Path, like: str, advance: Callable[[int], None] = lambda count: None) -> str:
    """What `like`, a listed digest, should be: the file's own. `advance` gets the bytes of each piece, and
    may raise. Raises OSError."""
    git = len(like) == 40
    digest = hashlib.sha1(usedforsecurity=False) if git else hashlib.sha256()
    with path.open("rb") as file:
        if git:
            digest.update(b"blob %d\0" % path.stat().st_size)
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
