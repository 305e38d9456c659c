"""A growing Markdown text -> lines that will not change any more, and the live rest of it.

Finished blocks go out once. What is drawn again and again is the last block only: a paragraph, one list
item, the last lines of a code block. A long last block goes out in parts, so the live rest stays small.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments.token import Comment, String
from rich.segment import Segment

from dsv4_mlx.terminal.paint import Line, Painter, lexer, plain, usable

CODE_LIVE = 6  # lines of a code block that stay live
CODE_LONG = 200  # lines after which a code block is cut even inside a string or comment

# Blocks only: what is inside them does not move their borders.
_BLOCKS = MarkdownIt("commonmark", {"html": False}).enable("table")
_BLOCKS.core.ruler.enableOnly(["normalize", "block"])
_GROWS = ("paragraph_open", "blockquote_open", "bullet_list_open", "ordered_list_open")


@dataclass(frozen=True)
class _Part:
    """A finished part of the text. `gap`: an empty line comes before it."""

    source: str
    gap: bool
    language: str | None = None  # code, given without its fence


class IncrementalMarkdown:
    """Feed it text; `update` hands out finished lines and sets `live`."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self.source = ""
        self.live: list[Line] = []
        self._tail = ""
        self._type = ""
        self._language: str | None = None  # the live part continues this code block
        self._fence = ""
        self._gap = False  # an empty line comes before the live part
        self._started = False
        self._gone = 0  # letters and digits of the live block that have gone out
        self._gone_lines = 0
        self._checked = False

    def feed(self, text: str) -> None:
        self.source += text
        self._tail += text
        self._checked = self._checked and "\n" not in text

    def at(self, painter: Painter) -> IncrementalMarkdown:
        """The same text from its beginning at another width."""
        flow = IncrementalMarkdown(painter)
        flow.feed(self.source)
        return flow

    def update(self, height: int) -> list[Line]:
        """Finished lines; `live` then has at most `height` of the rest."""
        out: list[Line] = []
        for part in self._finished():
            out += self._out(part)
        lines = self._render_tail()
        self._gone_lines = min(self._gone_lines, len(lines))
        lines = self._rest(lines)
        if len(lines) > height and self._type in _GROWS:
            keep = max(2, height // 2)
            going = lines[: len(lines) - keep]
            if self._gap:
                out.append([])
                self._gap = False
            out += going
            lines = lines[len(lines) - keep :]
            self._gone += sum(map(_weight, going))
            self._gone_lines += len(going)
        self.live = ([[]] if self._gap and lines else []) + lines[-height:]
        return out

    def finish(self) -> list[Line]:
        """All that is left."""
        out: list[Line] = []
        for part in self._finished():
            out += self._out(part)
        lines = self._rest(self._render_tail(patient=True))
        if lines and self._gap:
            out.append([])
        self.live, self._tail = [], ""
        return out + lines

    # -- parts ---------------------------------------------------------------------------------------

    def _finished(self) -> list[_Part]:
        """Cut finished parts off the tail. Borders move only where a line ends."""
        if self._checked:
            return []
        self._checked = True
        if self._language is not None:
            return self._code_goes_on()
        parts: list[_Part] = []
        tokens = _tops(_BLOCKS.parse(self._tail))
        lines = self._tail.splitlines(keepends=True)
        starts = [_first(token) for token in tokens]
        for i, start in enumerate(starts[:-1]):
            parts.append(self._part("".join(lines[start : starts[i + 1]])))
        if not tokens:
            self._type = ""
            return parts
        last = tokens[-1]
        rest = lines[starts[-1] :]
        self._type = last.type
        if last.type in ("bullet_list_open", "ordered_list_open"):
            rest = self._items(rest, parts)
        self._tail = "".join(rest)
        if last.type == "fence":
            self._gap = self._started or bool(parts)
            self._open_code(rest, last)
            parts += self._code_goes_on()
        return parts

    def _part(self, source: str) -> _Part:
        gap, self._gap = self._gap, True
        self._started = True
        return _Part(source, gap)

    def _items(self, lines: list[str], parts: list[_Part]) -> list[str]:
        """Split a list at its items; all but the last are finished."""
        tokens = [
            t for t in _BLOCKS.parse("".join(lines)) if t.type == "list_item_open" and t.level == 1 and t.map
        ]
        starts = [_first(token) for token in tokens]
        for i, start in enumerate(starts[:-1]):
            source = "".join(lines[start : starts[i + 1]])
            parts.append(self._part(source))
            self._gap = source.endswith("\n\n")
        return lines[starts[-1] :] if starts else lines

    def _out(self, part: _Part) -> list[Line]:
        if part.language is None:
            lines = self._rest(self.painter.markdown(part.source))
        else:
            lines = self.painter.code(part.source, part.language) or [[]]
        self._gone = self._gone_lines = 0
        return [[], *lines] if part.gap and lines else lines

    # -- code ----------------------------------------------------------------------------------------

    def _open_code(self, lines: list[str], token: Token) -> None:
        opening = lines[0] if lines else ""
        if not opening.endswith("\n"):
            return  # the language may still be coming
        self._language = (token.info.split() or ["text"])[0]
        self._fence = token.markup
        self._tail = "".join(lines[1:])

    def _code_goes_on(self) -> list[_Part]:
        """The live text is code. It ends at its fence, or goes out in parts as it grows."""
        if self._language is None:
            return []
        lines = self._tail.splitlines(keepends=True)
        closing = re.compile(rf" {{0,3}}{re.escape(self._fence[:1])}{{{len(self._fence)},}}[ \t]*\n?$")
        for i, line in enumerate(lines):
            if closing.match(line) and (line.endswith("\n") or i + 1 < len(lines)):
                parts = self._code_part(lines[:i])
                self._language, self._type, self._gap, self._started = None, "", True, True
                self._tail = "".join(lines[i + 1 :])
                self._checked = False
                return parts + self._finished()
        whole = len(lines) if self._tail.endswith("\n") else len(lines) - 1
        if whole <= 2 * CODE_LIVE:
            return []
        cut = _calm_line(lines, whole - CODE_LIVE, self._language)
        if not cut and whole > CODE_LONG:
            cut = whole - CODE_LIVE
        if not cut:
            return []
        parts = self._code_part(lines[:cut])
        self._tail = "".join(lines[cut:])
        return parts

    def _code_part(self, lines: list[str]) -> list[_Part]:
        if not lines:
            return []
        gap, self._gap, self._started = self._gap, False, True
        return [_Part("".join(lines).removesuffix("\n"), gap, self._language)]

    # -- the live rest -------------------------------------------------------------------------------

    def _render_tail(self, patient: bool = False) -> list[Line]:
        if self._language is not None:
            return self.painter.code(self._tail, self._language, patient) if self._tail.strip() else []
        return self.painter.markdown(self._tail, patient)

    def _rest(self, lines: list[Line]) -> list[Line]:
        """What has not gone out yet of the live block's lines."""
        if not self._gone:
            return lines
        if sum(map(_weight, lines[: self._gone_lines])) == self._gone:
            return lines[self._gone_lines :]
        # Markup that was open when lines went out has been closed since: go by letters, not lines.
        left = self._gone
        for i, line in enumerate(lines):
            weight = _weight(line)
            if weight > left:
                return ([_after(line, left)] if left else [line]) + lines[i + 1 :]
            left -= weight
        return []


def _tops(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.level == 0 and token.nesting >= 0 and token.map]


def _first(token: Token) -> int:
    return token.map[0] if token.map else 0


def _calm_line(lines: list[str], most: int, language: str) -> int:
    """The last line up to `most` after which no string or comment is open; 0 if there is none."""
    found = lexer(language)
    if found is None:
        return most if usable(language, patient=False) == language else 0
    ends = []
    position = 0
    for line in lines[:most]:
        position += len(line)
        ends.append(position)
    open_at: set[int] = set()
    at = 0
    for kind, text in found.get_tokens("".join(lines)):
        if kind in String or kind in Comment:
            open_at.update(end for end in ends if at < end < at + len(text))
        at += len(text)
    return next((i + 1 for i in range(most - 1, -1, -1) if ends[i] not in open_at), 0)


def _weight(line: Line) -> int:
    return sum(map(str.isalnum, plain(line)))


def _after(line: Line, weight: int) -> Line:
    """A line without its first `weight` letters and digits."""
    found: Line = []
    for segment in line:
        text = segment.text
        if weight:
            for i, character in enumerate(text):
                if not weight:
                    text = text[i:]
                    break
                weight -= character.isalnum()
            else:
                continue
        found.append(Segment(text, segment.style))
    return found
