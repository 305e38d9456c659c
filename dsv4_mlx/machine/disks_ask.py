"""Other programs that know: run, and what they print."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

Ask = Callable[[Sequence[str]], str | None]


def ask(command: Sequence[str]) -> str | None:
    """What it prints; None if it is not there, fails, or takes more than ten seconds.

    Named by its path: Python then spawns it, and need not fork a process that maps a whole model.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            close_fds=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
