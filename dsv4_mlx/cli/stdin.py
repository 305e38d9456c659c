"""Text from a pipe or a file on standard input."""

from __future__ import annotations

import os
import select
import stat
import sys

from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.terminal.attach import joined, text_of

_PATIENCE = 2.0  # seconds of silence after which the wait is explained


def question(prompt: str | None, *, exact: bool = False) -> str:
    """The prompt with what was piped in before it; `exact`: every character as it came, nothing between.

    Raises UsageError where there is neither, InputError for a pipe that is not text.
    """
    piped = _piped()
    if piped is None and prompt is None:
        raise UsageError(
            "there is nothing to answer: no prompt, and standard input is no pipe",
            next="give one with -p TEXT, or pipe text in",
        )
    text = (piped or "") + (prompt or "") if exact else joined(piped or "", prompt or "")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that were no UTF-8
        raise InputError("the prompt is not text: it holds bytes that are not UTF-8") from None
    if not text:
        raise UsageError("the prompt is empty", next="give one with -p TEXT, or pipe text in")
    return text


def is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a file."""
    return _descriptor() is not None


def _descriptor() -> int | None:
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode) else None


def _piped() -> str | None:
    descriptor = _descriptor()
    if descriptor is None:
        return None
    if not select.select([descriptor], [], [], _PATIENCE)[0]:
        print("waiting for text on standard input (Ctrl-C, or < /dev/null)", file=sys.stderr, flush=True)
    return text_of(sys.stdin.buffer.read(), "standard input")
