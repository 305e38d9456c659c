"""A conversion from the Hub that is killed at its Nth event: a piece that came, a step, a rename.

python crash_helpers.py ENDPOINT TARGET N
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from hub.fake_hub import REPOSITORY

from dsv4_mlx.convert import folder
from dsv4_mlx.hub import fetch, ranges
from dsv4_mlx.hub.download import convert_from_hub
from dsv4_mlx.hub.remote import Retry

left = int(sys.argv[3])


def event(*_: Any) -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """os, with an event before and after each rename, and before each write to what is downloaded."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, *names: Any) -> None:
        event()
        os.replace(*names)
        event()

    def pwrite(self, *given: Any) -> int:
        event()
        return os.pwrite(*given)


ranges.BLOCK, ranges.SPAN = 1 << 16, 2
folder.os = fetch.os = ranges.os = Watched()  # type: ignore[attr-defined, assignment]
convert_from_hub(
    REPOSITORY,
    Path(sys.argv[2]),
    delete=True,
    resume=True,
    endpoint=sys.argv[1],
    retry=Retry(first=0.1),
    progress=event,
)
print(left)
