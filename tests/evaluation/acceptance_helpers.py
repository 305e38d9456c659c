"""`check` for tests: quiet, without needles, which random weights can't find; and ways to damage a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.evaluation.acceptance import AcceptanceOptions, AcceptanceTools, accept
from dsv4_mlx.evaluation.report import Acceptance, AcceptanceStep
from dsv4_mlx.ops.selftest.verdicts import Verdict
from dsv4_mlx.ops.table import REFERENCE, Ops


@contextmanager
def quiet(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def forget(known: Acceptance) -> None:
    pass


def accepted(
    folder: Path,
    ops: Ops = REFERENCE,
    verdicts: tuple[Verdict, ...] = (),
    wanted: AcceptanceOptions | None = None,
) -> dict[str, AcceptanceStep]:
    """The steps by name, needles and long answer left out unless `wanted` says otherwise."""
    wanted = wanted or AcceptanceOptions(quick=True, lengths=())
    return {
        step.name: step
        for step in accept(folder, AcceptanceTools(ops, verdicts), wanted, quiet, forget).steps
    }


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as out:
        out.seek(offset)
        out.write(data)


def data_begin(file: Path) -> int:
    with file.open("rb") as text:
        return 8 + int.from_bytes(text.read(8), "little")


def offset_of(file: Path, key: str) -> int:
    with file.open("rb") as text:
        header = json.loads(text.read(data_begin(file))[8:])
    return data_begin(file) + int(header[key]["data_offsets"][0])


def digest_anew(folder: Path) -> None:
    """Make every digest of the manifest again from what the files hold: the work of one who hides damage."""
    raw = json.loads((folder / "manifest.json").read_text())
    manifest = read_manifest(folder)
    for name, record in manifest.tensors.items():
        header, begin = _header(folder / record.file)
        for part, key in record.parts.items():
            start, end = header[key]["data_offsets"]
            raw["tensors"][name]["digests"][part] = _sha256(folder / record.file, begin + start, end - start)
    for block, table in manifest.experts.items():
        begin = data_begin(folder / table.file)
        raw["experts"][block]["digests"] = [
            _sha256(folder / table.file, begin + i * table.record_bytes, table.record_bytes)
            for i in range(table.count)
        ]
    for name in raw["source"]["texts"]:
        raw["source"]["texts"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(raw))


def _header(file: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    with file.open("rb") as text:
        return json.loads(text.read(data_begin(file))[8:]), data_begin(file)


def _sha256(file: Path, start: int, count: int) -> str:
    with file.open("rb") as data:
        data.seek(start)
        return hashlib.sha256(data.read(count)).hexdigest()
