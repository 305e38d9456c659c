"""Slots that are given back and taken again: nothing moves, and only what changed is read again."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from engine.pretend_mac import PretendMac
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.checkpoint.manifest import ExpertTable, record_bytes, segments_of
from dsv4_mlx.machine.limits import memory_in_use
from dsv4_mlx.paging.paged_experts import PagedExperts
from dsv4_mlx.paging.policy import DuelPolicy
from dsv4_mlx.paging.reading import DiskReader, Files, ReaderPool
from dsv4_mlx.paging.slot_memory import SlotMemory
from dsv4_mlx.paging.slots import SlotTable
from dsv4_mlx.weights.records import RecordMap, converted_records

EXPERTS, MOST = 12, 8
RECORD = 13_369_344  # V4-Flash
SAMPLES = (0, 4096, RECORD // 2, RECORD - 1)


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[PagedExperts]:
    """A layer with records of the true size: holes, but for some bytes that say which expert it is."""
    segments = segments_of((2048, 4096), (2048, 4096), (4096, 2048), "mxfp4")
    table = ExpertTable("layer", "mxfp4", EXPERTS, record_bytes(segments), segments, ())
    records = file_of(table, tmp_path)
    files = Files()
    files.open(records.files[0], records.sizes[0])
    pool = ReaderPool(DiskReader(files, verify=False), 2)
    yield PagedExperts(records, MOST, DuelPolicy(EXPERTS), pool, mx.bfloat16, lambda chunk, *banks: chunk.x)
    pool.close()


def file_of(table: ExpertTable, folder: Path) -> RecordMap:
    assert table.record_bytes == RECORD
    size = 8 + EXPERTS * RECORD
    with (folder / table.file).open("wb") as file:
        file.truncate(size)
        for expert in range(EXPERTS):
            for sample in SAMPLES:
                file.seek(8 + expert * RECORD + sample)
                file.write(bytes([expert + 1]))
    return converted_records(folder, table, size)


def anonymous() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_twenty_times_with_records_of_the_true_size(layer: PagedExperts) -> None:
    """Same bits, nothing copied, no more read again than slots changed, memory as planned."""
    draw, address, in_mlx = random.Random(1), place(layer), memory_in_use()

    def fill() -> int:
        """Records read until all slots hold one."""
        before = layer.stats.bytes
        layer.advise([e for e in range(EXPERTS) if layer.table.slot_of[e] < 0][: layer.table.free])
        layer.settle()
        return (layer.stats.bytes - before) // RECORD

    assert fill() == MOST
    base = anonymous() - MOST * RECORD
    slots, read, changed = MOST, 0, 0
    for _ in range(20):
        before, loaded = slots, layer.table.loaded()
        slots = draw.choice([n for n in range(1, MOST + 1) if n != slots])
        layer.resize(slots)
        assert layer.bank.slots == layer.table.slots == slots
        assert set(layer.table.loaded()) <= set(loaded)
        assert len(layer.table.loaded()) == min(before, slots), "kept"
        assert anonymous() - base <= min(before, slots) * RECORD + RECORD // 2
        read += fill()
        changed += abs(slots - before)
        assert anonymous() - base <= slots * RECORD + RECORD // 2
        for expert in layer.table.loaded():
            held = layer.bank.memory(layer.table.slot_of[expert])
            assert [held[sample] for sample in SAMPLES] == [expert + 1] * len(SAMPLES)
        codes = layer.bank.banks()[0].codes
        assert np.array(codes[:, 0, 0])[layer.table.slot_of[expert]] & 0xFF == expert + 1
        assert place(layer) == address and memory_in_use() == in_mlx
    assert read <= changed


def place(layer: PagedExperts) -> int:
    return int(np.frombuffer(layer.bank.memory(0), np.uint8).ctypes.data)


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=8))
def test_a_table_that_changes_holds_what_was_kept(slots: int, steps: list[tuple[int, bool]]) -> None:
    table = SlotTable(slots, 12)
    for wanted, in_place in steps:
        for expert in [e for e in range(12) if table.slot_of[e] < 0][: table.free]:
            table.claim(expert)
            table.filled(expert)
        kept = min(wanted, table.slots) if in_place else 0
        held = table.expert_of[:kept]
        table.resize(wanted, kept)
        assert table.expert_of == held + [-1] * (wanted - kept) and table.free == wanted - kept
        assert [table.slot_of[e] for e in held] == list(range(kept))
        assert sorted(table.loaded()) == sorted(held) and len(table.loaded()) + table.free == wanted


def test_a_table_that_is_in_use_does_not_change() -> None:
    table = SlotTable(2, 4)
    table.claim(1)
    with pytest.raises(RuntimeError, match="while they are read"):
        table.resize(1, 1)
    table.filled(1)
    epoch = table.use([1])
    with pytest.raises(RuntimeError, match="while they are read"):
        table.resize(1, 1)
    table.finish(epoch)
    table.resize(1, 1)
    assert table.slot_of[1] == 0


def test_on_a_mac_the_buffer_lies_over_pages_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder in place of MLX's import: whole pages at a page, never a copy; bytes stay where they are."""
    PretendMac(1 << 37, 1 << 36).install(monkeypatch)
    asked: list[int] = []

    def imported(pages: Any, copy: bool | None = None) -> mx.array:
        assert copy is False and pages.ctypes.data % mmap.PAGESIZE == pages.nbytes % mmap.PAGESIZE == 0
        asked.append(pages.nbytes)
        return mx.array(pages)

    monkeypatch.setattr(mx, "asarray", imported)
    record = 3 * mmap.PAGESIZE + 512
    memory = SlotMemory(5, record)
    address = np.frombuffer(memory.bytes, np.uint8).ctypes.data
    memory.bytes[: 5 * record] = bytes(range(1, 6)) * record
    for slots, kept in ((2, 2), (4, 2), (5, 4), (1, 1)):
        assert memory.resize(slots) == kept
        assert memory.array.shape == (slots, record // 4)
        assert np.frombuffer(memory.bytes, np.uint8).ctypes.data == address
        assert bytes(memory.bytes[:record]) == (bytes(range(1, 6)) * record)[:record]
        assert not any(memory.bytes[slots * record + mmap.PAGESIZE :]), "given back"
    assert asked == [-(-n * record // mmap.PAGESIZE) * mmap.PAGESIZE for n in (5, 2, 4, 5, 1)]


def test_where_mlx_would_copy_the_slots_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendMac(1 << 37, 1 << 36).install(monkeypatch)  # the CPU's own MLX refuses to import without a copy
    memory, before = SlotMemory(8, 1 << 20), mx.get_active_memory()
    assert memory.resize(2) == 0
    assert before - mx.get_active_memory() == 6 << 20
    assert memory.array.shape == (2, 1 << 18) and len(memory.bytes) == 2 << 20
    with pytest.raises(ValueError, match="expected 1 to 8"):
        memory.resize(9)
