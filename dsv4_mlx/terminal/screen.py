"""The drawn terminal: finished text goes to the scrollback, the live rest and the input stay below it.

Only the last block of an answer is drawn again, at most `RATE` times a second and never for more than
`SHARE` of one core. Text typed meanwhile is drawn at once.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.styles import Style

from dsv4_mlx.errors import EXIT_TERMINATED
from dsv4_mlx.machine.units import duration
from dsv4_mlx.terminal.answering import AnswerInProgress, thought
from dsv4_mlx.terminal.attach import clean, printable
from dsv4_mlx.terminal.chat import Chat
from dsv4_mlx.terminal.chat_engine import Kind
from dsv4_mlx.terminal.conversation import Conversation
from dsv4_mlx.terminal.history import LineHistory
from dsv4_mlx.terminal.input import LineCompleter, Pastes, bindings
from dsv4_mlx.terminal.markdown import IncrementalMarkdown
from dsv4_mlx.terminal.paint import Fragments, HeldOutput, Line, Painter, begin_common, fragments
from dsv4_mlx.terminal.scrollback import Scrollback, ScrollbackEntry, entries_of, entries_of_answer
from dsv4_mlx.terminal.status import ThinkingLine, progress, status

RATE = 10.0  # drawings a second
SHARE = 0.012  # of a core that drawing an answer may take
SLOWEST = 0.5  # seconds between drawings at most
IDLE = 0.1  # seconds between looks while nothing happens
PANE = 5  # lines of running thinking


class Screen:
    """A View on a terminal. `run` returns the exit code."""

    chat: Chat

    def __init__(self, source: Input, output: HeldOutput, history: LineHistory, color: bool) -> None:
        self.output, self.color, self.history = output, color, history
        self.size = output.get_size()
        self.painter = Painter(self.size.columns, color)
        self.record = Scrollback()
        self.pastes = Pastes()
        self.opened = False  # the thinking pane, by Ctrl-T
        self.drawing = 0.0  # seconds of this thread that drawing has taken, and how often it was done
        self.drawings = 0
        self._scrolled = 0
        self._flow: IncrementalMarkdown | None = None
        self._thinking = ThinkingLine(self.painter)
        self._answering: AnswerInProgress | None = None
        self._pending: list[Line] = []
        self._live: Fragments = []
        self._began = 0.0
        self.buffer = Buffer(
            multiline=True, history=history, tempfile_suffix=".md",
            completer=LineCompleter(lambda: self.chat.store.entries()),
            complete_while_typing=Condition(lambda: self.buffer.text.startswith("/")),
        )  # fmt: skip
        self.app: Application[int] = Application(
            layout=self._layout(), key_bindings=bindings(self), input=source, output=output,
            erase_when_done=True, style=Style.from_dict(_STYLE), before_render=self._before,
            after_render=self._after, enable_page_navigation_bindings=False,
        )  # fmt: skip

    def _layout(self) -> Layout:
        def window(text: Callable[[], StyleAndTextTuples]) -> Window:
            return Window(FormattedTextControl(text), dont_extend_height=True, always_hide_cursor=True)

        entry = Window(
            BufferControl(self.buffer),
            height=lambda: Dimension(min=1, max=max(1, self.size.rows // 3)),
            wrap_lines=True,
            dont_extend_height=True,
            get_line_prefix=lambda number, wrapped: [
                ("class:prompt", "> " if number == 0 and not wrapped else "  ")
            ],
        )
        live = ConditionalContainer(window(lambda: [*self._live]), Condition(lambda: bool(self._live)))
        pane = ConditionalContainer(window(self._pane), Condition(lambda: self.opened))
        menu = CompletionsMenu(max_height=6, scroll_offset=1)
        below = Window(FormattedTextControl(self._status), height=1, always_hide_cursor=True)
        return Layout(HSplit([live, pane, entry, menu, below]), focused_element=entry)

    def _status(self) -> StyleAndTextTuples:
        return [("class:status", status(self.chat, self.size.columns))]

    # -- running ---------------------------------------------------------------------------------------

    def run(self, chat: Chat) -> int:
        """Start the chat and serve it until it ends."""
        self.chat = chat
        begin_common()
        chat.start()
        for problem in self.history.problems:
            self.problem(problem)
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: self.leave(EXIT_TERMINATED))
        ticking = asyncio.ensure_future(self._serve())
        try:
            return await self.app.run_async()
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            if self._pending:
                self.output.write_raw(self._ansi(self._take_pending()))
                self.output.flush()

    async def _serve(self) -> None:
        while not self.app.is_running:
            await asyncio.sleep(0)
        try:
            await self._tick()
        except Exception as error:  # a bug: it must end the program, not only this task
            self.app.exit(exception=error)

    async def _tick(self) -> None:
        before = self.drawing
        while True:
            if self.output.get_size() != self.size:
                self.repaint()
            if self.chat.pump() or self.chat.busy or self._pending:
                self.draw()
            cost, before = self.drawing - before, self.drawing  # since the last look
            pause = max(1 / RATE, min(SLOWEST, cost / SHARE)) if self.chat.busy else IDLE
            await asyncio.sleep(pause)

    # -- drawing ---------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Bring the terminal up to date."""
        start, counted = time.thread_time(), self.drawing
        self._update()
        if self._pending and self.app.is_running:
            with self.output.together():
                self.app.renderer.erase(leave_alternate_screen=False)
                self.output.write_raw(self._ansi(self._take_pending()))
                self._render()
            self.drawings += 1
        else:
            self.app.invalidate()
        self.drawing = counted + time.thread_time() - start

    def _render(self) -> None:
        self.app._redraw()  # the public ways either wait for the event loop or show cached text

    def _before(self, app: Application[int]) -> None:
        self._began = time.thread_time()

    def _after(self, app: Application[int]) -> None:
        self.drawing += time.thread_time() - self._began
        self.drawings += 1

    def _update(self) -> None:
        """Work out the live part, and what has become final."""
        room = max(3, min(16, self.size.rows - 8))
        line = progress(self.chat, self.size.columns - 1)
        if line is not None:
            self._live = [("class:progress", line)]
        elif self._flow is not None:
            self._pending += self._flow.update(room)
            self._live = fragments(self._flow.live)
        elif self._answering is not None and self._answering.message.thinking:
            lines = self._thinking.lines()[-min(PANE, room - 1) :]
            answering = self._answering
            head = (
                f"thinking  {duration(answering.thinking_for)}, {answering.message.thinking_tokens:,} tokens"
            )
            self._live = [("class:thinking", "\n".join([head, *(f"│ {text}" for text in lines)]))]
        else:
            self._live = []

    def repaint(self) -> None:
        """Draw everything that fits again: after the size has changed, or on Ctrl-L."""
        self.size = self.output.get_size()
        self.painter = Painter(self.size.columns, self.color)
        self._thinking = self._thinking.at(Painter(self.size.columns - 3, self.color))
        self._update_at_width()
        rows = max(0, self.size.rows - 8)
        lines = self.record.last_lines(self.painter, rows)
        lines = [*lines, *self._pending][-rows:] if rows else []
        self._pending = []
        with self.output.together():
            self.app.renderer.erase(leave_alternate_screen=False)
            self.output.erase_screen()
            self.output.cursor_goto(0, 0)
            self.output.write_raw(self._ansi(lines))
            self._render()

    def _update_at_width(self) -> None:
        self._pending = []
        if self._flow is not None:
            self._flow = self._flow.at(self.painter)
        self._update()

    def _show(self, kind: str, text: str) -> None:
        """Add to the record and to what is about to be printed."""
        entry: ScrollbackEntry = self.record.add(kind, printable(text))
        self._pending += [*entry.lines(self.painter), []]

    def _ansi(self, lines: list[Line]) -> str:
        return self.painter.ansi(lines).replace("\n", "\r\n")

    def _take_pending(self) -> list[Line]:
        pending, self._pending = self._pending, []
        return pending

    def _pane(self) -> StyleAndTextTuples:
        """The open thinking pane."""
        height = max(3, min(12, self.size.rows // 2))
        lines = self._thinking.lines() or ["(there was no thinking)"]
        self._scrolled = max(0, min(self._scrolled, len(lines) - height))
        end = len(lines) - self._scrolled
        shown = lines[max(0, end - height) : end]
        head = f"thinking, lines {end - len(shown) + 1}-{end} of {len(lines)}; Ctrl-T closes, PageUp scrolls"
        head = head[: self.size.columns - 1]
        return [("class:thinking", "\n".join([head, *(f"│ {line}" for line in shown)]))]

    # -- what keys do ----------------------------------------------------------------------------------

    def send(self) -> None:
        """Enter: hand the line over."""
        shown = self.buffer.text
        text = self.pastes.expanded(shown)
        if shown.strip():
            self.history.append_string(shown if len(text) > 10_000 else text)
            for problem in self.history.problems[:]:
                self.history.problems.remove(problem)
                self.problem(problem)
        self.buffer.reset()
        self.chat.submit(text)
        self.draw()

    def stop(self) -> None:
        """Ctrl-C."""
        if self.chat.interrupt():
            self.draw()
        elif self.buffer.text:
            self.buffer.reset()
        else:
            self.note("Ctrl-D or /quit leaves")
            self.draw()

    def quit(self) -> None:
        """Ctrl-D on an empty line."""
        self.chat.quit()

    def toggle(self) -> None:
        self.opened, self._scrolled = not self.opened, 0

    def scroll(self, lines: int) -> None:
        self._scrolled += lines

    def paste(self, text: str) -> None:
        self.buffer.insert_text(self.pastes.shown(clean(text)))

    # -- View ------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self._show("note", text)

    def problem(self, text: str) -> None:
        self._show("problem", text)

    def question(self, text: str) -> None:
        self._show("question", text)

    def begin(self, answering: AnswerInProgress) -> None:
        self._answering, self._flow = answering, None

    def said(self, kind: Kind, text: str) -> None:
        text = printable(text)
        if kind == "thinking":
            if self._answering is not None and self._answering.message.thinking == text:  # its first piece
                self._thinking = ThinkingLine(Painter(self.size.columns - 3, self.color))
            self._thinking.feed(text)
        elif kind == "answer":
            if self._flow is None:
                self._collapse()
                self._flow = IncrementalMarkdown(self.painter)
            self._flow.feed(text)

    def _collapse(self) -> None:
        answering = self._answering
        if answering is not None and answering.message.thinking:
            self._show("thought", thought(answering))

    def end(self, answering: AnswerInProgress) -> None:
        if self._flow is None:
            self._collapse()
        else:
            self._pending += [*self._flow.finish(), []]
        for kind, text in entries_of_answer(answering.message):
            if kind == "answer":
                self.record.add(kind, printable(text))
            elif kind != "thought":
                self._show(kind, text)
        self._flow = self._answering = None
        self._live = []

    def put_back(self, text: str) -> None:
        shown = self.pastes.shown(text)
        if text and self.buffer.text:
            shown = f"{shown}\n{self.buffer.text}"  # what was being typed is not lost
        self.buffer.text = shown
        self.buffer.cursor_position = len(shown)

    def replay(self, conversation: Conversation) -> None:
        for kind, text in entries_of(conversation):
            self.record.add(kind, printable(text))
        last = conversation.last("assistant")
        self._thinking = ThinkingLine(Painter(self.size.columns - 3, self.color))
        self._thinking.feed(printable(last.thinking) if last else "")
        lines = self.record.last_lines(self.painter, 2 * self.size.rows)
        self._pending += lines
        self.note(f"{conversation.name!r}, {len(conversation.messages)} messages")

    def wipe(self) -> None:
        self.record = Scrollback()
        self._thinking = ThinkingLine(Painter(self.size.columns - 3, self.color))
        self.repaint()

    def escape(self, sequence: str) -> None:
        self.output.write_raw(sequence)
        self.output.flush()

    def leave(self, code: int) -> None:
        if self.app.is_running and not self.app.is_done:
            self.app.exit(result=code)


_STYLE = {
    "prompt": "ansicyan bold",
    "status": "ansibrightblack",
    "progress": "",
    "thinking": "italic ansibrightblack",
    "completion-menu": "noinherit",
    "completion-menu.completion": "noinherit",
    "completion-menu.completion.current": "reverse",
    "completion-menu.meta.completion": "noinherit ansibrightblack",
    "completion-menu.meta.completion.current": "reverse",
}
