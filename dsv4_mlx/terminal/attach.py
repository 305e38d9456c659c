"""What comes into a question from outside, files and piped text, and goes out of an answer: the clipboard.

The clipboard is reached by the system's own program, else by asking the terminal (OSC 52).
"""

from __future__ import annotations

import base64
import os
import select
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.machine.support import at_home
from dsv4_mlx.machine.units import size

_PROGRAMS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"))
_IN_UTF_8 = ("/usr/bin/env", "LC_ALL=en_US.UTF-8")  # pbcopy decodes by the locale
_LARGEST = 74_994  # characters of base64 that terminals are known to take


def copy(text: str, write_terminal: Callable[[str], None]) -> str:
    """Copy, and say how. `write_terminal` sends an escape sequence to the terminal."""
    data = text.encode("utf-8", "replace")
    for name, *arguments in _PROGRAMS:
        if (path := shutil.which(name)) is not None:
            try:
                # A path and close_fds False: Python then spawns, and need not fork what maps a whole model.
                subprocess.run(
                    [*_IN_UTF_8, path, *arguments],
                    input=data,
                    check=True,
                    timeout=5,
                    stdout=subprocess.DEVNULL,
                    close_fds=False,
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return f"copied {len(text)} characters"
    encoded = base64.b64encode(data).decode("ascii")
    if len(encoded) > _LARGEST:
        return f"{len(text)} characters are too many to copy through this terminal"
    write_terminal(f"\x1b]52;c;{encoded}\a")
    return f"copied {len(text)} characters through the terminal, if it allows that"


LARGEST = 64 << 20  # bytes; a context of a million tokens holds about 4 MB of text


@dataclass(frozen=True)
class Attachment:
    """Text from a file, to go before the next question."""

    name: str
    text: str

    def prompt(self) -> str:
        """The text as the model gets it: named and fenced, by a fence that the text does not contain."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        end = "" if self.text.endswith("\n") else "\n"
        return f"{self.name}:\n{fence}\n{self.text}{end}{fence}\n"


def read_text(given: str) -> Attachment:
    """A text file. Raises InputError, saying what it is instead."""
    path = at_home(given)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"there is no file {given!r}", next="give a path from where you started") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{given!r} can't be read: {_why(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{given!r} is a folder", next="give a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{given!r} is not a file", next="give a text file")
    if status.st_size > LARGEST:
        raise InputError(
            f"{given!r} has {size(status.st_size)}, far more than any context; the limit is {size(LARGEST)}",
            next="give a part of it",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{given!r} can't be read: {_why(error)}", next="check its permissions") from None
    return Attachment(given, text_of(data, given))


def text_of(data: bytes, name: str) -> str:
    """Bytes -> text. UTF-8, or UTF-16 that says so. Raises InputError for what isn't text."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in data:
        raise InputError(
            f"{name} is binary: byte {data.index(0)} of {len(data)} is zero",
            next="give text, not binary data",
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            next="convert it first, for example with iconv -t UTF-8",
        ) from None


def clean(text: str) -> str:
    """Typed or pasted text without lone surrogates and control characters, which no tokenizer wants."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")
    return printable(text)


def printable(text: str) -> str:
    """Text without control characters: what a model or a file says must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or not ("\0" <= c < " " or "\x7f" <= c <= "\x9f"))


def joined(piped: str, prompt: str) -> str:
    """Piped text and a prompt as one question: the text first, an empty line, then the prompt."""
    parts = [part for part in (piped.rstrip("\n"), prompt) if part.strip()]
    return "\n\n".join(parts)


def _why(error: OSError | ValueError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


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
