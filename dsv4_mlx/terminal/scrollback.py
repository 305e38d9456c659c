"""What has been shown, kept as text so that it can be drawn again at another width."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style

from dsv4_mlx.machine.units import duration
from dsv4_mlx.terminal.conversation import Conversation, Message
from dsv4_mlx.terminal.markdown import IncrementalMarkdown
from dsv4_mlx.terminal.paint import Line, Painter

KEPT = 300  # entries; more than fill any screen
LONG = 20  # lines of a question that are shown


@dataclass(frozen=True)
class ScrollbackEntry:
    """One thing shown: `kind` is question, note, problem, thought, answer, tool or ending."""

    kind: str
    text: str

    def lines(self, painter: Painter) -> list[Line]:
        if self.kind == "answer":
            flow = IncrementalMarkdown(painter)
            flow.feed(self.text)
            return flow.finish()
        if self.kind == "question":
            return _question(self.text, painter)
        if self.kind == "thought":
            return painter.text(f"▸ {self.text}  (Ctrl-T shows it)", "dim")
        if self.kind == "tool":
            return painter.text(f"⚙ calls {self.text}", "magenta")
        if self.kind == "problem":
            return painter.text(f"! {self.text}", "red")
        return painter.text(self.text, "dim")


class Scrollback:
    """Entries, an empty line between them."""

    def __init__(self) -> None:
        self.entries: deque[ScrollbackEntry] = deque(maxlen=KEPT)

    def add(self, kind: str, text: str) -> ScrollbackEntry:
        entry = ScrollbackEntry(kind, text)
        self.entries.append(entry)
        return entry

    def last_lines(self, painter: Painter, count: int) -> list[Line]:
        """The last `count` lines of everything shown."""
        lines: list[Line] = []
        for entry in reversed(self.entries):
            lines = [*entry.lines(painter), [], *lines]
            if len(lines) >= count:
                break
        return lines[-count:] if count > 0 else []


def entries_of(conversation: Conversation) -> list[tuple[str, str]]:
    """A stored conversation as what would have been shown."""
    found = []
    for message in conversation.messages:
        if message.role == "user":
            found.append(("question", message.text))
        else:
            found += entries_of_answer(message)
    return found


def entries_of_answer(message: Message) -> list[tuple[str, str]]:
    found = []
    if message.thinking:
        found.append(
            (
                "thought",
                f"thought for {duration(message.thinking_seconds)}, {message.thinking_tokens:,} tokens",
            )
        )
    if message.text:
        found.append(("answer", message.text))
    if message.tools:
        found.append(("tool", message.tools))
    if message.ending == "interrupted":
        found.append(("ending", "(stopped)"))
    elif message.ending == "length":
        found.append(("ending", "(cut off: the limit of tokens is reached)"))
    return found


def _question(text: str, painter: Painter) -> list[Line]:
    lines = text.rstrip("\n").split("\n")
    more = len(lines) - LONG
    if more > 2:
        lines = [*lines[: LONG - 4], f"... {more + 1} lines more ...", *lines[-3:]]
    inner = Painter(painter.width - 2, painter.color)
    found: list[Line] = []
    for line in lines:
        if len(line) > LONG * painter.width:
            line = f"{line[: 4 * painter.width]} ... {len(line):,} characters"
        found += inner.text(line, "bold") or [[]]
    mark = Style(color="cyan", bold=True)
    return [[Segment("> " if i == 0 else "  ", mark), *line] for i, line in enumerate(found)]
