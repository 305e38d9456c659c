"""The thinking pane: the last lines while it runs, all of it when it is opened."""

from __future__ import annotations

from dsv4_mlx.terminal.paint import Painter


class Thinking:
    """Thinking as wrapped lines; only the last paragraph is wrapped again as text comes."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self.source = ""
        self._lines: list[str] = []
        self._open = ""

    def feed(self, text: str) -> None:
        self.source += text
        self._open += text

    def at(self, painter: Painter) -> Thinking:
        pane = Thinking(painter)
        pane.feed(self.source)
        return pane

    def lines(self) -> list[str]:
        """All lines so far."""
        wrapped = self.painter.wrapped(self._open)
        if len(wrapped) > 1:
            # Lines but the last are settled: greedy wrapping never moves them again.
            last = wrapped[-1]
            self._lines += wrapped[:-1]
            at = self._open.rfind(last) if last else len(self._open)
            self._open = self._open[at:]
            wrapped = [last]
        return [*self._lines, *wrapped] if self.source else []
