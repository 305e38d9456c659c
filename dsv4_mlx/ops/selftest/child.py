"""The process in which kernels are tried. It writes a line as each begins, after a case, at its end."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from typing import Any

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.selftest.judge import judge
from dsv4_mlx.ops.selftest.verdicts import Limits, resolve


def child(arguments: list[str]) -> None:
    """arguments: one JSON object with launcher, limits and kernels. Reports go to the real stdout only."""
    asked = json.loads(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as report:

        def say(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=report, flush=True)

        os.dup2(2, 1)  # whatever a library prints is not a report
        launcher, limits = resolve(asked["launcher"]), Limits(**asked["limits"])
        ops = {op.name: op for op in ALL}
        for name in asked["kernels"]:
            say({"begins": name})
            say(asdict(judge(ops[name], launcher, limits, alive=lambda: say({"alive": True}))))


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it goes, a kernel that hangs goes too."""
    os.read(0, 1)
    os._exit(1)
