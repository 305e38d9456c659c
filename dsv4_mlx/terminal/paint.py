"""Markdown and text -> lines of styled segments, by rich; and those -> bytes or prompt_toolkit fragments.

Colours are the terminal's own sixteen, so that they suit a dark and a light background.

A terminal output that can hold several steps back and send them as one write.

Highlighters by language. The first use of one compiles its patterns, 100 ms and more: in a thread, so
that keys still echo meanwhile.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import ClassVar, TextIO

from markdown_it import MarkdownIt
from markdown_it.token import Token
from prompt_toolkit.data_structures import Size
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound
from rich.cells import cell_len
from rich.color import ColorType
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

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


COMMON = ("python", "bash", "json")  # made ready while the model loads
PLAIN = "text"


@cache
def _begun(language: str) -> threading.Thread:
    """The thread that makes a language ready, started by whoever asks first."""
    thread = threading.Thread(target=_compile, args=(language,), daemon=True)
    thread.start()
    return thread


def begin_common() -> None:
    """Make the common ones ready."""
    for language in COMMON:
        _begun(language)


def usable(language: str, patient: bool) -> str:
    """`language` once it is ready, which `patient` waits for; until then the name of no highlighting."""
    thread = _begun(language)
    if patient:
        thread.join()
    return PLAIN if thread.is_alive() else language


def lexer(language: str) -> Lexer | None:
    """The highlighter if there is one and it is ready."""
    if usable(language, patient=False) != language:
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def _compile(language: str) -> None:
    try:
        list(get_lexer_by_name(language).get_tokens("x = 1\n"))
    except ClassNotFound:
        return


Line = list[Segment]
Fragments = list[tuple[str, str]]

_THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.h4": "italic",
        "markdown.item.bullet": "cyan",
        "markdown.item.number": "cyan",
        "markdown.block_quote": "dim",
        "markdown.hr": "dim",
        "markdown.link": "underline",
        "markdown.link_url": "underline",
        "chat.question": "bold",
        "chat.note": "dim",
        "chat.problem": "red",
        "chat.thinking": "dim italic",
    }
)
# HTML stays text: rich would drop it, and with it what models write about <tags>.
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class _Code(CodeBlock):
    """A code block without background, set in by two columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield code(str(self.text).rstrip("\n"), self.lexer_name)

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Code:
        name = (token.info or "").partition(" ")[0] or PLAIN
        patient = not isinstance(markdown, _Markdown) or markdown.patient
        return cls(usable(name, patient), markdown.code_theme)


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar = dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "left")


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }
    patient = True


_EMPTY = _Markdown("", hyperlinks=False, code_theme="ansi_dark")


def code(source: str, language: str) -> RenderableType:
    """Highlighted source."""
    syntax = Syntax(source, language, theme="ansi_dark", background_color="default", word_wrap=True)
    return Padding(syntax, (0, 0, 0, 2))


class Painter:
    """Renders at one width. `color` False: bold, dim and underline only."""

    def __init__(self, width: int, color: bool = True) -> None:
        self.width, self.color = max(10, width), color
        self._console = Console(
            file=io.StringIO(), width=self.width, height=1000, force_terminal=True, color_system="standard",
            no_color=not color, theme=_THEME, legacy_windows=False, _environ={},
        )  # fmt: skip

    def markdown(self, source: str, patient: bool = True) -> list[Line]:
        """`patient` waits for a highlighter that isn't ready; else its code is shown plain."""
        parsed = copy.copy(_EMPTY)  # making one builds a parser, which costs more than most texts
        parsed.markup, parsed.parsed, parsed.patient = source, PARSER.parse(source), patient
        return self._lines(parsed)

    def code(self, source: str, language: str, patient: bool = True) -> list[Line]:
        return self._lines(code(source, usable(language, patient)))

    def text(self, text: str, style: str = "") -> list[Line]:
        return self._lines(Text(text, style=style, overflow="fold"))

    def wrapped(self, text: str) -> list[str]:
        """Plain text, cut into lines."""
        lines = Text(text, overflow="fold").wrap(self._console, self.width)
        return [line.plain for line in lines] or [""]

    def ansi(self, lines: list[Line]) -> str:
        """Lines as a terminal takes them."""
        system = self._console._color_system
        out = []
        for line in lines:
            out += [
                self._shade(segment.style).render(segment.text, color_system=system)
                if segment.style
                else segment.text
                for segment in line
            ]
            out.append("\n")
        return "".join(out)

    def _shade(self, style: Style) -> Style:
        return style if self.color else style.without_color

    def _lines(self, what: RenderableType) -> list[Line]:
        lines = [_trimmed(line) for line in self._console.render_lines(what, pad=False)]
        while lines and not lines[0]:
            del lines[0]
        while lines and not lines[-1]:
            del lines[-1]
        return lines


def _trimmed(line: Line) -> Line:
    """A line without spaces at its end: they would wrap when the terminal gets narrower."""
    line = [segment for segment in line if segment.text and not segment.control]
    while line:
        text = line[-1].text.rstrip()
        if text:
            line[-1] = Segment(text, line[-1].style)
            break
        del line[-1]
    return line


def plain(line: Line) -> str:
    return "".join(segment.text for segment in line)


def fragments(lines: list[Line]) -> Fragments:
    """Lines as prompt_toolkit takes them, with no newline after the last."""
    found: Fragments = []
    for i, line in enumerate(lines):
        if i:
            found.append(("", "\n"))
        found += [(_style(segment.style), segment.text) for segment in line]
    return found


@lru_cache(maxsize=512)
def _style(style: Style | None) -> str:
    if style is None:
        return ""
    words = [
        word
        for word, on in (
            ("bold", style.bold), ("italic", style.italic), ("underline", style.underline),
            ("dim", style.dim), ("reverse", style.reverse), ("strike", style.strike),
        )
        if on
    ]  # fmt: skip
    color = style.color
    if color is not None and color.type is ColorType.STANDARD and color.number is not None:
        words.append("fg:" + _ANSI[color.number])
    elif color is not None and color.type is not ColorType.DEFAULT:
        words.append("fg:#{:02x}{:02x}{:02x}".format(*color.get_truecolor()))
    return " ".join(words)


_ANSI = (
    "ansiblack", "ansired", "ansigreen", "ansiyellow", "ansiblue", "ansimagenta", "ansicyan", "ansigray",
    "ansibrightblack", "ansibrightred", "ansibrightgreen", "ansibrightyellow", "ansibrightblue",
    "ansibrightmagenta", "ansibrightcyan", "ansiwhite",
)  # fmt: skip


def fitted(parts: list[str], width: int, between: str = " · ") -> str:
    """As many parts, from the first, as fit into `width` columns; the first is cut if it must be."""
    text = ""
    for part in parts:
        longer = f"{text}{between}{part}" if text else part
        if text and cell_len(longer) > width:
            break
        text = longer
    while cell_len(text) > width:
        text = text[:-1]
    return text
