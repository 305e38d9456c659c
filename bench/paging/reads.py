"""Cold misses into slots against plain concurrent reads of the same records.

    python -m bench.paging.reads FOLDER         FOLDER: a disk with 1 GB free; a file is made and deleted

Records have the true size (13,369,344 bytes) and random bytes. A reading is cold: the file is not mapped, its
pages are dropped (posix_fadvise DONTNEED) and mincore must find less than 1% of it in memory. For each number
of threads both sides alternate; the result is the median of the pairwise ratios.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from bench.paging.rejected import LruPolicy
from dsv4_mlx.checkpoint.manifest import ALIGNMENT, ExpertTable, Segment
from dsv4_mlx.model.tensors import Routed
from dsv4_mlx.ops.types import Bank
from dsv4_mlx.paging.paged_experts import PagedExperts
from dsv4_mlx.paging.reading import DiskReader, Files, ReaderPool
from dsv4_mlx.weights.records import RecordMap, converted_records

RECORD = 13_369_344
HIDDEN, WIDTH = 4096, 2048
BATCH = 24  # records of one reading
PAIRS = 7
THREADS = (1, 2, 4, 8)
Comparison = Callable[[Path, RecordMap, int], list[dict[str, Any]]]  # file, its records, pairs


def true_table(experts: int, file: str) -> ExpertTable:
    """A layer of the release: MXFP4 experts 4096 -> 2048 -> 4096."""
    segments, at = [], 0
    for name, rows, columns in (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN)):
        segments.append(Segment(f"{name}_codes", at, rows * columns // 2, (rows, columns // 8), "U32"))
        at += rows * columns // 2
    for name, rows, columns in (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN)):
        segments.append(Segment(f"{name}_scales", at, rows * columns // 32, (rows, columns // 32), "U8"))
        at += rows * columns // 32
    segments.append(Segment("down_codes", at, HIDDEN * WIDTH // 2, (HIDDEN, WIDTH // 8), "U32"))
    at += HIDDEN * WIDTH // 2
    segments.append(Segment("down_scales", at, HIDDEN * WIDTH // 32, (HIDDEN, WIDTH // 32), "U8"))
    assert at + HIDDEN * WIDTH // 32 == RECORD
    return ExpertTable(file, "mxfp4", experts, RECORD, tuple(segments), ())


def write_records(path: Path, experts: int) -> RecordMap:
    """A file of random records; scales are moderate, so that products are finite."""
    table, random = true_table(experts, path.name), np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(bytes(ALIGNMENT))
        for _ in range(experts):
            record = random.integers(0, 256, RECORD, np.uint8)
            for segment in table.segments:
                if segment.name.endswith("scales"):
                    record[segment.offset : segment.offset + segment.bytes] = 118
            file.write(record.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return converted_records(path.parent, table, path.stat().st_size)


def make_cold(path: Path) -> float:
    """Drop the file's pages; the share still in memory, below 0.01 or RuntimeError."""
    for _ in range(20):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if (share := resident(file.fileno(), path.stat().st_size)) < 0.01:
                return share
        time.sleep(0.1)
    raise RuntimeError(f"{share:.1%} of {path} stays in memory")


def resident(descriptor: int, size: int) -> float:
    """Share of a file's pages that are in memory. The mapping is gone when this returns."""
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    found = np.zeros(pages, np.uint8)
    with mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        wrong = libc.mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)
        )
        del view
        if wrong:
            raise OSError(ctypes.get_errno(), "mincore")
    return float((found & 1).mean())


class Raw:
    """Threads that pread records into memory of their own, allocated and touched before."""

    def __init__(self, records: RecordMap) -> None:
        self._records = records
        self._descriptor = os.open(records.files[0], os.O_RDONLY)
        self._memory = memoryview(np.ones(BATCH * RECORD, np.uint8))

    def __call__(self, experts: list[int], threads: int) -> float:
        """Seconds for these records."""
        turn = count()

        def work() -> None:
            while (i := next(turn)) < len(experts):
                (part,) = self._records.ranges[experts[i]]
                into = self._memory[i * RECORD : (i + 1) * RECORD]
                done = 0
                while done < RECORD:
                    done += os.preadv(self._descriptor, [into[done:]], part.offset + done)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - started


class Ours:
    """A paged layer of BATCH slots that is asked for BATCH experts it has not."""

    def __init__(self, records: RecordMap) -> None:
        files = Files()
        files.open(records.files[0], records.sizes[0])
        self._pool = ReaderPool(DiskReader(files), 1)
        self._layer = PagedExperts(records, BATCH, LruPolicy(records.count), self._pool, mx.float32, nothing)
        self._x = mx.zeros((1, BATCH // 6, HIDDEN))

    def __call__(self, experts: list[int], threads: int) -> float:
        """Seconds of a run of the layer that computes nothing, until all experts are in slots."""
        self._pool.resize(threads)
        ids = mx.array(np.array(experts, np.uint32).reshape(1, -1, 6))
        mx.eval(ids)
        before = self._layer.stats.misses
        started = time.perf_counter()
        chunk = Routed(self._x, ids, mx.zeros(ids.shape), mx.zeros((1,)), BATCH // 6)
        mx.eval(self._layer.routed([chunk]))
        seconds = time.perf_counter() - started
        assert self._layer.stats.misses - before == len(experts)
        return seconds


def nothing(chunk: Routed, gate_up: Bank, down: Bank) -> mx.array:
    return mx.zeros((*chunk.x.shape[:2], 1))


def compare(path: Path, records: RecordMap, pairs: int) -> list[dict[str, Any]]:
    """GB/s of both sides and the ratio, for each number of threads."""
    raw, ours = Raw(records), Ours(records)
    halves = list(range(BATCH)), list(range(BATCH, 2 * BATCH))
    found = []
    for threads in THREADS:
        seconds: dict[str, list[float]] = {"raw": [], "ours": []}
        cold = 0.0
        for i in range(pairs + pairs % 2):  # an even number: the next one begins with what is not loaded
            order: list[tuple[str, Callable[[list[int], int], float]]] = [("raw", raw), ("ours", ours)]
            for name, side in order if i % 2 else order[::-1]:
                cold = max(cold, make_cold(path))
                seconds[name].append(side(halves[i % 2], threads))
        rates = {name: [BATCH * RECORD / s / 1e9 for s in all_] for name, all_ in seconds.items()}
        ratios = [a / b for a, b in zip(rates["ours"], rates["raw"], strict=True)]
        found.append(
            {
                "threads": threads,
                "raw_gb_s": statistics.median(rates["raw"]),
                "ours_gb_s": statistics.median(rates["ours"]),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "resident_before_at_most": cold,
            }
        )
        print(json.dumps({k: v for k, v in found[-1].items() if k != "ratios"}), flush=True)
    return found


def command(description: str, name: str, experts: int, compare: Comparison) -> None:
    """The command line of a comparison on a file of `experts` records that is made for it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = options.folder / name
    try:
        found = compare(path, write_records(path, experts), options.pairs)
    finally:
        path.unlink(missing_ok=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    command(__doc__.split("\n")[0], "paging-reads.safetensors", 2 * BATCH, compare)
