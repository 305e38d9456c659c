"""Streaming Markdown: however it arrives, everything is shown once and in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4_mlx.terminal.markdown import IncrementalMarkdown
from dsv4_mlx.terminal.paint import Painter, plain
from dsv4_mlx.terminal.status import ThinkingLine

PARTS = (
    "# Head\n\n",
    "Some **bold** text, quite long, that goes on and on until it wraps. ",
    "`code` ",
    "- item\n",
    "  - nested item\n",
    "1. one\n",
    "2. two\n",
    "\n",
    '```python\nx = 1\n\n"""doc\nstring"""\n',
    "```\n",
    "y = f'{x}'\n" * 9,
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "> quoted words\n",
    "---\n",
    "*emph* [link](http://x.y) ",
    "<b>tag</b> ",
    "日本語 ",
    "Title\n===\n",
    "word " * 70,
    "~~~\n",
    "    indented\n",
    "\\*not emph\\* ",
    "a*b*c ",
)


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def shown(source: str, cuts: list[int], width: int, height: int) -> list[str]:
    flow, out, at = IncrementalMarkdown(Painter(width)), [], 0
    for cut in [*cuts, len(source)]:
        flow.feed(source[at:cut])
        at = cut
        out += flow.update(height)
        assert len(flow.live) <= height + 1
    return [plain(line) for line in [*out, *flow.finish()]]


@settings(max_examples=120)
@given(st.lists(st.sampled_from(PARTS), max_size=14), st.data())
def test_pieces_do_not_matter(parts: list[str], data: st.DataObject) -> None:
    source = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(source)), max_size=40)))
    width = data.draw(st.sampled_from([20, 80, 200]))
    streamed = shown(source, cuts, width, 8)
    assert all(len(line) <= width for line in streamed)
    at_once = IncrementalMarkdown(Painter(width))
    at_once.feed(source)
    whole = [plain(line) for line in at_once.finish()]
    assert letters("".join(streamed)) == letters("".join(whole))


def test_a_new_width_shows_the_same_text() -> None:
    source = "".join(PARTS[:8]) * 3
    flow = IncrementalMarkdown(Painter(80))
    flow.feed(source)
    flow.update(8)
    again = flow.at(Painter(40))
    lines = [*again.update(8), *again.finish()]
    whole = IncrementalMarkdown(Painter(40))
    whole.feed(source)
    assert letters("".join(map(plain, lines))) == letters("".join(map(plain, whole.finish())))


def test_finished_blocks_go_out_at_once_and_only_the_last_is_live() -> None:
    flow = IncrementalMarkdown(Painter(80))
    flow.feed("First.\n\nSecond")
    assert [plain(line) for line in flow.update(8)] == ["First."]
    assert [plain(line) for line in flow.live] == ["", "Second"]
    flow.feed(" goes on")
    assert flow.update(8) == [] and plain(flow.live[-1]) == "Second goes on"


def test_html_stays_text() -> None:
    flow = IncrementalMarkdown(Painter(80))
    flow.feed("<div>\nkept\n</div>\n\nvector<int> x")
    assert "<div> kept </div>" in " ".join(map(plain, flow.finish()))


def test_markup_closed_after_its_lines_went_out_loses_nothing() -> None:
    words = " ".join(f"w{i}" for i in range(300))
    source = f"**{words}** end"
    cuts = list(range(0, len(source), 7))
    found = " ".join(shown(source, cuts, 40, 8)).replace("*", "").split()
    assert found == [*words.split(), "end"]


def test_thinking_wraps_like_the_whole() -> None:
    source = "".join(f"thought {i} about things\n" if i % 3 else f"longer {i} " * 9 for i in range(60))
    pane = ThinkingLine(Painter(40))
    for i in range(0, len(source), 5):
        pane.feed(source[i : i + 5])
        lines = pane.lines()
    assert letters("".join(lines)) == letters(source)
    assert all(len(line) <= 40 for line in lines)
