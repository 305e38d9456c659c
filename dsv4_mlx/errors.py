"""Every error a person can meet, and how far long work is.

    Dsv4Error                 base; carries the exit code
    |-- UsageError       2    wrong arguments or options
    |-- InputError       2    a file, folder, config or id that is not what it should be
    |-- DoesNotFit       2    this model can't run with these limits
    |-- AnswerCut        4    a limit ended an answer before it had the form that was asked for
    `-- MachineError     3    read error, port busy, out of memory
        |-- DiskFull     3    no room for what is still to be written
        `-- ModelOutputError 3    logits that are not numbers: the device failed silently

A message says what was found, what was expected, where, and what to do next. Anything that is not a
Dsv4Error is a bug in this project: the command line logs its traceback and exits with 70.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, in all: of bytes, tokens, passes; may raise to leave the work

EXIT_BUG = 70
EXIT_INTERRUPT = 130
EXIT_TERMINATED = 143


class Dsv4Error(Exception):
    """An expected failure. `str(error)` is the whole message, in up to three lines."""

    exit_code = 2

    def __init__(self, message: str, *, where: object = None, next: str | None = None) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.next = next
        lines = [message]
        if self.where is not None:
            lines.append(f"  in   {self.where}")
        if next is not None:
            lines.append(f"  next: {next}")
        super().__init__("\n".join(lines))


class Dsv4Warning(UserWarning):
    """Work goes on, but not as it should: the message says why, and what to do next."""


class UsageError(Dsv4Error):
    """Wrong arguments or options."""


class InputError(Dsv4Error):
    """A file, folder, config or token id that is not what it should be."""


class DoesNotFit(Dsv4Error):
    """The model or prompt is larger than the limits it was given."""


class AnswerCut(Dsv4Error):
    """An answer was cut off, and does not have the form that it was to have."""

    exit_code = 4


class MachineError(Dsv4Error):
    """The machine failed: disk full, read error, port busy, out of memory."""

    exit_code = 3


class DiskFull(MachineError):
    """No room for what is still to be written."""


class ModelOutputError(MachineError):
    """Logits hold NaN, infinity or nothing but zeros (a silent device failure)."""
