"""Reads and writes past the page cache give the same bytes as any others, and give way where refused."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from dsv4_mlx.checkpoint import files as direct
from dsv4_mlx.checkpoint.files import PAGE, InFile, OutFile, aligned_buffer

SIZE = 3 * 2**20 + 77


@pytest.fixture(params=["as the system allows", "refused at open", "refused in use"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This system; one without direct files; one that opens them and then wants another alignment."""
    monkeypatch.setattr(direct, "SCRATCH", 256 * 1024)
    special: set[int] = set()
    open_, read, write = os.open, os.preadv, os.pwrite

    def opened(path: Any, flags: int, *more: Any) -> int:
        if flags & direct._O_DIRECT and request.param == "refused at open":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = open_(path, flags, *more)
        if flags & direct._O_DIRECT:
            special.add(descriptor)
        return descriptor

    def refused(real: Any) -> Any:
        def call(descriptor: int, *given: Any) -> Any:
            if descriptor in special:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(descriptor, *given)

        return call

    if request.param != "as the system allows":
        if not direct._O_DIRECT:
            pytest.skip("no O_DIRECT here")
        monkeypatch.setattr(os, "open", opened)
        monkeypatch.setattr(os, "preadv", refused(read))
        monkeypatch.setattr(os, "pwrite", refused(write))


def test_reads(way: None, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    (tmp_path / "file").write_bytes(data)
    file = InFile(tmp_path / "file")
    draw = random.Random(2)
    spans = [(0, SIZE), (1, SIZE - 1), (PAGE, 2 * PAGE), (SIZE - 100, 100), (SIZE - 70_000, 70_000)]
    spans += [(start := draw.randrange(SIZE), draw.randrange(SIZE - start)) for _ in range(40)]
    for start, count in spans:
        into = bytearray(count)
        file.read(start, memoryview(into))
        assert into == data[start : start + count]
    with pytest.raises(EOFError, match=f"ends at byte {SIZE}"):
        file.read(SIZE - 10, memoryview(bytearray(100_000)))
    file.close()


def test_writes(way: None, tmp_path: Path) -> None:
    draw = random.Random(3)
    data = draw.randbytes(SIZE)
    out = OutFile(tmp_path / "file")
    buffer = aligned_buffer(512 * 1024)
    cuts = sorted({0, SIZE, PAGE, 5 * PAGE, *(draw.randrange(SIZE) for _ in range(12))})
    spans = list(zip(cuts, cuts[1:], strict=False))
    draw.shuffle(spans)
    for first, last in spans:
        for start in range(first, last, len(buffer)):
            count = min(len(buffer), last - start)
            buffer[:count] = data[start : start + count]
            out.write(buffer[:count], start)
    out.close()
    assert (tmp_path / "file").read_bytes() == data


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    file, out = InFile(tmp_path / "file"), OutFile(tmp_path / "out")

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(OSError, match="Input/output error"):
            file.read(0, memoryview(bytearray(SIZE)))
        with pytest.raises(OSError, match="Input/output error"):
            out.write(aligned_buffer(PAGE), 0)
    file.close()
    out.close()
