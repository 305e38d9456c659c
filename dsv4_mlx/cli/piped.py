"""Text from a pipe or a file on standard input."""

from __future__ import annotations

import os
import select
import stat
import sys

from dsv4_mlx.errors import UsageError
from dsv4_mlx.terminal.attach import joined, text_of

_PATIENCE = 2.0  # seconds of silence after which the wait is explained


def question(prompt: str | None, needed: bool) -> str | None:
    """The prompt with what was piped in before it; None where there is neither.

    Raises UsageError if one is `needed`, InputError for a pipe that is not text.
    """
    piped = _piped()
    if piped is None and prompt is None:
        if needed:
            raise UsageError(
                "there is nothing to answer: no prompt, and standard input is no pipe",
                next="give one with -p TEXT, or pipe text in",
            )
        return None
    text = joined(piped or "", prompt or "")
    if not text:
        raise UsageError("the prompt is empty", next="give one with -p TEXT, or pipe text in")
    return text


def _piped() -> str | None:
    """All of standard input if it is a pipe, a socket or a file; None if it is a terminal or a device."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return None
    if stat.S_ISFIFO(mode) and not select.select([descriptor], [], [], _PATIENCE)[0]:
        print("waiting for text on standard input (Ctrl-C, or < /dev/null)", file=sys.stderr, flush=True)
    return text_of(sys.stdin.buffer.read(), "standard input")
