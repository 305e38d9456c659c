"""Draw docs/chat.svg: the chat, driven in a pseudo-terminal with a scripted engine, as its screen shows it.

python bench/chat_picture.py [--out docs/chat.svg]
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rich.console import Console  # noqa: E402
from rich.style import Style  # noqa: E402
from rich.text import Text  # noqa: E402
from terminal.screens import Person  # noqa: E402
from terminal.scripted import Reply, Scripted, words  # noqa: E402

COLUMNS, ROWS = 84, 30
THOUGHTS = "The person wants a ring buffer. Position t lives at t modulo the size. " * 12
ANSWER = """\
A **ring** keeps the last `size` rows: position *t* is stored at index `t % size`.

```python
class Ring:
    def __init__(self, size: int) -> None:
        self.rows = [None] * size  # nothing is ever shifted

    def write(self, t: int, row: object) -> None:
        self.rows[t % len(self.rows)] = row
```

1. Writing costs the same however long the text is.
2. Taking back *k* tokens is a change of length.

| rows | bytes a token |
|------|---------------|
| 128  | 0             |
"""


def child(folder: Path) -> int:
    from dsv4_mlx.terminal.chat import ChatOptions
    from dsv4_mlx.terminal.terminal import talk

    steps = [*words("thinking", THOUGHTS), *words("answer", ANSWER)]
    speaker = Scripted(lambda question, asked: Reply(steps, delay=0.01, prefill_delay=0.05), context=131_072)
    return talk(speaker, folder, ChatOptions("scripted", seed=1), dict(os.environ))


def picture() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder]
        with Person(command, COLUMNS, ROWS) as person:
            person.sees("think on")
            person.enters("How does a ring buffer work?")
            person.sees("128   0")
            person.sees("> $|>\n")
            person.types("And how are rows ")
            person.sees("And how are rows")
            person.look(0.5)
            rows = [_row(person, y) for y in range(len(person.lines()))]
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for row in rows:
        console.print(row, no_wrap=True, overflow="crop")
    return console.export_svg(title="dsv4-mlx chat (a scripted answer)")


def _row(person: Person, y: int) -> Text:
    """One line of the screen, in its colours."""
    text = Text()
    for x in range(COLUMNS):
        cell = person.screen.buffer[y][x]
        color = None if cell.fg == "default" else _COLORS.get(cell.fg, cell.fg)
        style = Style(color=color, bold=cell.bold, italic=cell.italics, underline=cell.underscore)
        text.append(cell.data, style)
    return text


_COLORS = {"brown": "yellow", "brightbrown": "bright_yellow", "brightblack": "bright_black"} | {
    f"bright{name}": f"bright_{name}" for name in ("red", "green", "blue", "magenta", "cyan", "white")
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "chat.svg")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        return child(given.child)
    given.out.write_text(picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
