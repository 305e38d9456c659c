"""Text to the clipboard: by the system's own program, else by asking the terminal (OSC 52)."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable

_PROGRAMS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"))
_LARGEST = 74_994  # characters of base64 that terminals are known to take


def copy(text: str, write_terminal: Callable[[str], None]) -> str:
    """Copy, and say how. `write_terminal` sends an escape sequence to the terminal."""
    data = text.encode("utf-8", "replace")
    for name, *arguments in _PROGRAMS:
        if (path := shutil.which(name)) is not None:
            try:
                # A path and close_fds False: Python then spawns, and need not fork what maps a whole model.
                subprocess.run(
                    [path, *arguments],
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
