"""Two ways of filling a slot: a positioned read, and a copy from the mapped file.

    python -m bench.paging.mapped FOLDER        FOLDER: a disk with 1 GB free; a file is made and deleted

Records have the true size. Cold: as in bench.paging.reads, and mapped after the pages were dropped.
Warm: all of it is in the page cache; the mapping is new (its pages are entered one by one) or kept from
earlier copies. Both sides alternate; the result is the median of the pairwise ratios, copy to read.
"""

from __future__ import annotations

import json
import mmap
import statistics
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.paging.reads import BATCH, RECORD, THREADS, Raw, command, make_cold
from dsv4_mlx.weights.records import RecordMap

Case = Literal["cold", "warm, new mapping", "warm, kept mapping"]
CASES: tuple[Case, ...] = ("cold", "warm, new mapping", "warm, kept mapping")


class Copies:
    """Threads that copy records out of a mapping, into memory allocated and touched before."""

    def __init__(self, records: RecordMap) -> None:
        self._records = records
        self._memory = np.ones(BATCH * RECORD, np.uint8)
        self._bytes: npt.NDArray[np.uint8] | None = None

    def map(self) -> None:
        with self._records.files[0].open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        self._bytes = np.frombuffer(mapped, np.uint8)

    def unmap(self) -> None:
        self._bytes = None  # the array was the mapping's last owner

    def __call__(self, experts: list[int], threads: int) -> float:
        """Seconds for these records. The copy itself runs without Python's lock."""
        turn, mapped = count(), self._bytes
        assert mapped is not None

        def work() -> None:
            while (i := next(turn)) < len(experts):
                (part,) = self._records.ranges[experts[i]]
                np.copyto(self._memory[i * RECORD : (i + 1) * RECORD], mapped[part.offset :][:RECORD])

        workers = [threading.Thread(target=work) for _ in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - started


def one_pair(
    path: Path, read: Raw, copy: Copies, case: Case, threads: int, swap: bool
) -> tuple[float, float]:
    """Seconds of reading and of copying the same records."""
    experts = list(range(BATCH))
    seconds = {}
    for side in ("copy", "read") if swap else ("read", "copy"):
        if case == "cold":
            copy.unmap()
            make_cold(path)
        if side == "copy" and case != "warm, kept mapping":
            copy.unmap()
            copy.map()
        seconds[side] = (copy if side == "copy" else read)(experts, threads)
    return seconds["read"], seconds["copy"]


def compare(path: Path, records: RecordMap, pairs: int) -> list[dict[str, Any]]:
    read, copy = Raw(records), Copies(records)
    found = []
    for case in CASES:
        for threads in THREADS:
            copy.map()
            one_pair(path, read, copy, case, threads, swap=False)
            both = [one_pair(path, read, copy, case, threads, bool(i % 2)) for i in range(pairs)]
            rate = [BATCH * RECORD / statistics.median(side) / 1e9 for side in zip(*both, strict=True)]
            found.append(
                {
                    "case": case,
                    "threads": threads,
                    "read_gb_s": rate[0],
                    "copy_gb_s": rate[1],
                    "copy_to_read": statistics.median(a / b for a, b in both),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


if __name__ == "__main__":
    command(__doc__.split("\n")[0], "paging-mapped.safetensors", BATCH, compare)
