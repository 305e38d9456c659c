"""Safetensors headers, read with suspicion.

A file is 8 bytes of header length (little-endian), that many bytes of JSON, then the tensors' bytes. Nothing
in a header is believed before it is checked: a damaged or hostile file gives an InputError that names it,
never a traceback and never a read outside the file.

Safetensors headers, written aligned.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.inventory import ITEM_BYTES
from dsv4_mlx.checkpoint.manifest import ALIGNMENT
from dsv4_mlx.errors import InputError, MachineError

REPACKED = ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")  # no release has them
MOST_DIMENSIONS = 8  # the official ones have at most 2; a product of many is a number nobody can print
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class HeaderEntry:
    """Where a tensor lies: `start` and `end` count from the first byte of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's table of contents. `digest` is the SHA-256 of the length and the JSON as stored."""

    path: Path
    tensors: dict[str, HeaderEntry]
    data_start: int
    size: int  # of the file
    digest: str


def read_header(path: Path) -> Header:
    """Read and check one file's header. Raises InputError (damage) or MachineError (read failure)."""
    try:
        # Not blocking: a pipe put in the place of a shard must not hang the program.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise IsADirectoryError
            size = facts.st_size
            prefix = file.read(8)
            check_kind(path, prefix)
            if len(prefix) < 8:
                raise _damaged(path, f"the file has {size} bytes, too few for a header")
            length = int.from_bytes(prefix, "little")
            if length > min(size - 8, LARGEST_HEADER):
                raise _damaged(path, f"the header says it is {length} bytes long, the file has {size}")
            text = file.read(length)
    except FileNotFoundError:
        raise InputError("the file is missing", where=path, next="download it again") from None
    except IsADirectoryError:
        raise InputError(f"{path.name} is not a file", where=path, next="download it again") from None
    except OSError as error:
        raise MachineError(f"the file can't be read: {error.strerror or error}", where=path) from None
    if len(text) != length:
        raise _damaged(path, "the file shrank while it was read")
    return parse_header(path, prefix + text, size)


def check_kind(path: Path, start: bytes) -> None:
    """Raises InputError for what stands in a file's place: a pointer of Git LFS, a web page."""
    if start.startswith(b"version "):
        raise InputError(
            f"{path.name} is a pointer of Git LFS: the file itself was not fetched",
            where=path,
            next="git lfs pull in that folder, or dsv4-mlx download ORG/NAME FOLDER",
        )
    if start.lstrip()[:2] in (b"<!", b"<h", b"<H", b"<?"):
        raise InputError(
            f"{path.name} is a web page, not the file: a login, or a message of a proxy",
            where=path,
            next="look at it in a browser, then download the file again",
        )


def parse_header(path: Path, start: bytes, size: int) -> Header:
    """Check a header, its 8 bytes of length included, of a file of `size` bytes. Raises InputError."""
    tensors = _Check(path, len(start), size).tensors(_parse(path, start[8:]))
    return Header(path, tensors, len(start), size, hashlib.sha256(start).hexdigest())


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _damaged(path, "the header names a tensor twice")
        return found

    try:
        raw = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise _damaged(path, "the header is not JSON") from None
    if not isinstance(raw, dict):
        raise _damaged(path, "the header is not a JSON object")
    raw.pop("__metadata__", None)
    return raw


class _Check:
    def __init__(self, path: Path, data_start: int, size: int) -> None:
        self.path = path
        self.data_start = data_start
        self.size = size

    def tensors(self, raw: dict[str, Any]) -> dict[str, HeaderEntry]:
        tensors = {name: self.entry(name, value) for name, value in raw.items()}
        # The format allows neither overlaps nor holes, so sorted ranges must follow one another exactly.
        end = self.data_start
        for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != end:
                what = "overlaps the tensor before it" if entry.start < end else "leaves a hole before it"
                raise _damaged(self.path, f"the header places {name} so that it {what}")
            end = entry.end
        if end > self.size:
            raise _damaged(
                self.path, f"the file is truncated: its header describes {end} bytes, it has {self.size}"
            )
        if end < self.size:
            raise _damaged(self.path, f"the file has {self.size} bytes, its header describes only {end}")
        return tensors

    def entry(self, name: str, raw: Any) -> HeaderEntry:
        if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
            raise _damaged(self.path, f"the header's entry for {name} is not dtype, shape and data_offsets")
        dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
        if dtype in REPACKED:
            raise InputError(
                f"{name} has the dtype {dtype}: another program has packed these weights anew",
                where=self.path,
                next="use the official checkpoint, whose FP4 experts are I8, two codes a byte",
            )
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise _damaged(self.path, f"{name} has the unknown dtype {dtype!r}")
        if not _naturals(shape):
            raise _damaged(self.path, f"{name} has the impossible shape {shape!r}")
        if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise _damaged(self.path, f"{name} has the impossible offsets {offsets!r}")
        if len(shape) > MOST_DIMENSIONS:
            raise _damaged(self.path, f"{name} has {len(shape)} dimensions, far too many")
        expected, given = math.prod(shape) * ITEM_BYTES[dtype], offsets[1] - offsets[0]
        if given != expected:
            raise _damaged(
                self.path, f"{name} is {dtype} {shape}, which needs {expected} bytes; it is given {given}"
            )
        return HeaderEntry(dtype, tuple(shape), self.data_start + offsets[0], self.data_start + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 for item in value
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path.name} is damaged: {why}", where=path, next="download this file again")


def build_header(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of a file that holds these (name, dtype, shape) in this order.

    It is padded with spaces, which the format allows, so that the data begins on an ALIGNMENT boundary.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
