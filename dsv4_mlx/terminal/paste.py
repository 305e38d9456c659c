"""Big pastes: the input shows a short mark, the question gets the text."""

from __future__ import annotations

LINES, CHARACTERS = 20, 2000  # a paste beyond either is shown as a mark


class Pastes:
    """Marks and what they stand for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """What to put into the input for a pasted text: itself if it is small."""
        lines = text.count("\n") + 1
        if lines <= LINES and len(text) <= CHARACTERS:
            return text
        size = f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
        mark = f"[paste {len(self._texts) + 1}: {size}]"
        self._texts[mark] = text
        return mark

    def expanded(self, text: str) -> str:
        """A line of input with its marks replaced. A mark inside pasted text stays."""
        parts = [text]
        for mark, pasted in self._texts.items():
            parts = [
                piece
                for i, part in enumerate(parts)
                for piece in (_split(part, mark, pasted) if i % 2 == 0 else [part])
            ]
        return "".join(parts)


def _split(text: str, mark: str, pasted: str) -> list[str]:
    """The text's own pieces at even places, pasted ones at odd places."""
    found: list[str] = []
    for i, piece in enumerate(text.split(mark)):
        if i:
            found.append(pasted)
        found.append(piece)
    return found
