"""A terminal output that can hold several steps back and send them as one write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from prompt_toolkit.data_structures import Size
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

# A terminal that knows this pair shows what lies between at once; others ignore it.
_TOGETHER, _SHOWN = "\x1b[?2026h", "\x1b[?2026l"


class HeldOutput(Vt100_Output):
    """Erasing, printing and drawing again reach the terminal together, so nothing flickers."""

    def __init__(self, stdout: TextIO, get_size: Callable[[], Size], term: str, color: bool) -> None:
        depth = ColorDepth.DEPTH_4_BIT if color else ColorDepth.DEPTH_1_BIT
        super().__init__(stdout, get_size, term=term, default_color_depth=depth, enable_cpr=False)
        self._held = 0

    def flush(self) -> None:
        if not self._held:
            super().flush()

    @contextmanager
    def together(self) -> Iterator[None]:
        self._held += 1
        self.write_raw(_TOGETHER)
        try:
            yield
        finally:
            self.write_raw(_SHOWN)
            self._held -= 1
            self.flush()
