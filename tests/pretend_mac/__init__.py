"""Python processes that believe they are on a Mac, and note what they would have done to it.

    site/sitecustomize.py  makes every Python that is started with `Mac.environment` believe it
    system.py              Python's own view of the system: names, limits of memory and reads, fcntl, programs
    mlx_calls.py           MLX's view: a GPU with its memory; what computes is the CPU
    commands.py            several command lines in one process

`python -m tests.pretend_mac 128 -- info demo` runs one command and prints the notes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "PRETEND_MAC"
GIB = 1 << 30
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mac:
    """`memory` and `working_set` in GiB. `pressure`: one level for each time that somebody looks, the last
    for ever. `haste`: seconds of time.monotonic() in a second."""

    memory: int
    working_set: float
    chip: str
    macos: str = "15.5"
    pressure: tuple[int, ...] = (1,)
    haste: float = 1.0

    def environment(self, record: Path, home: Path) -> dict[str, str]:
        """For a process and its children, which note into `record`, a file."""
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLX_", "DSV4_"))}
        return kept | {
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS / "pretend_mac" / "site"), str(TESTS)]),
            VARIABLE: json.dumps(asdict(self) | {"record": str(record)}),
        }


# Working sets as macOS 15 reports them.
MACS = {
    24: Mac(24, 16, "Apple M4"),
    128: Mac(128, 96, "Apple M4 Max"),
    192: Mac(192, 144, "Apple M2 Ultra"),
    512: Mac(512, 384, "Apple M3 Ultra"),
}


@dataclass(frozen=True)
class Note:
    """Something that a process did, of which `facts` tell more."""

    pid: int
    what: str
    facts: dict[str, Any]


def notes(record: Path, what: str = "") -> list[Note]:
    """In the order in which they were made; those of a kind, or all."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    found = [Note(**json.loads(line)) for line in lines]
    return [note for note in found if what in ("", note.what)]
