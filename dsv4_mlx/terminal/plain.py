"""The chat as lines of text: for a screen reader, a file or a pipe, and a terminal that can't be drawn on.

Answers go to stdout, everything else to stderr. Nothing moves the cursor and nothing is coloured.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from queue import Empty
from typing import TextIO

from dsv4_mlx.terminal.answering import AnswerInProgress, thought
from dsv4_mlx.terminal.attach import printable
from dsv4_mlx.terminal.chat import Chat
from dsv4_mlx.terminal.chat_engine import Kind
from dsv4_mlx.terminal.conversation import Conversation
from dsv4_mlx.terminal.history import LineHistory
from dsv4_mlx.terminal.scrollback import entries_of, entries_of_answer
from dsv4_mlx.terminal.status import progress

FIRST, EVERY = 1.0, 5.0  # seconds until a line about loading or the prompt, and between such lines


class Plain:
    """A View that only ever appends. `run` talks, `run_once` answers one question."""

    chat: Chat

    def __init__(self, out: TextIO, err: TextIO, history: LineHistory | None = None) -> None:
        self.out, self.err, self.history = out, err, history
        self.code: int | None = None
        self._text = ""  # put back into the next line
        self._answering: AnswerInProgress | None = None
        self._answered = False
        self._at_start = True
        self._said = time.monotonic() - EVERY + FIRST

    # -- running ---------------------------------------------------------------------------------------

    def run(self, chat: Chat) -> int:
        """Read lines until the end of the input."""
        self.chat = chat
        chat.start()
        if self.history is not None:
            for problem in self.history.problems:
                self.problem(problem)
        self._guarded(self._work)
        read = _Reader(self.history, self.err)
        while self.code is None:
            try:
                text, self._text = read.line("> ", self._text), ""
            except EOFError:
                print(file=self.err)
                chat.quit()
                continue
            except KeyboardInterrupt:
                print("\nCtrl-D or /quit leaves", file=self.err, flush=True)
                continue
            chat.submit(text)
            self._guarded(self._work)
        return self.code

    def run_once(self, chat: Chat, text: str) -> int:
        """Ask one question and end."""
        self.chat = chat
        chat.start()
        chat.submit_text(text)
        self._guarded(self._work)
        return chat.code if self.code is None else self.code

    def _work(self) -> None:
        """Show what happens until the model is idle."""
        while self.code is None and self.chat.busy:
            with contextlib.suppress(Empty):
                self.chat.take(self.chat.engine.events.get(timeout=0.2))
            self._progress()

    def _guarded(self, work: Callable[[], None]) -> None:
        while True:
            try:
                return work()
            except KeyboardInterrupt:
                self.chat.interrupt()

    def _progress(self) -> None:
        now = time.monotonic()
        line = progress(self.chat, 200) if now - self._said >= EVERY else None
        if line is not None:
            self._said = now
            self._tell(line.replace("━", "").replace("╌", "").replace("  ", " "))

    # -- View ------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        if not self._at_start:
            print(file=self.out, flush=True)
            self._at_start = True
        print(printable(text), file=self.err, flush=True)

    def note(self, text: str) -> None:
        self._tell(text)

    def problem(self, text: str) -> None:
        self._tell(f"error: {text}")

    def question(self, text: str) -> None:
        """The person's own line already stands there."""

    def begin(self, answering: AnswerInProgress) -> None:
        self._answering, self._answered = answering, False
        self._said = time.monotonic() - EVERY + FIRST

    def said(self, kind: Kind, text: str) -> None:
        answering = self._answering
        if kind == "thinking":
            if answering is not None and answering.message.thinking == text:
                self._tell("thinking ...")
            return
        if not self._answered:
            self._answered = True
            if answering is not None and answering.message.thinking:
                self._tell(thought(answering))
        if kind == "answer":
            self.out.write(printable(text))
            self.out.flush()
            self._at_start = text.endswith("\n")

    def end(self, answering: AnswerInProgress) -> None:
        if not self._at_start:
            print(file=self.out, flush=True)
            self._at_start = True
        if not self._answered and answering.message.thinking:
            self._tell(thought(answering))
        for kind, text in entries_of_answer(answering.message):
            if kind == "tool":
                self._tell(f"calls {text}")
            elif kind == "ending":
                self._tell(text)

    def put_back(self, text: str) -> None:
        self._text = text

    def replay(self, conversation: Conversation) -> None:
        for kind, text in entries_of(conversation)[-6:]:
            if kind == "answer":
                print(printable(text), file=self.out, flush=True)
            else:
                self._tell(f"> {text}" if kind == "question" else text)
        self._tell(f"{conversation.name!r}, {len(conversation.messages)} messages")

    def wipe(self) -> None:
        """Nothing is taken from the screen here."""

    def escape(self, sequence: str) -> None:
        if self.out.isatty():
            self.out.write(sequence)
            self.out.flush()

    def leave(self, code: int) -> None:
        self.code = code


class _Reader:
    """Lines from stdin: with readline on a terminal, plainly elsewhere."""

    def __init__(self, history: LineHistory | None, err: TextIO) -> None:
        self._history, self._err = history, err
        self._readline = sys.stdin.isatty() and sys.stdout.isatty()
        if self._readline and history is not None:
            import readline

            for text in reversed(list(history.load_history_strings())):
                if "\n" not in text:
                    readline.add_history(text)

    def line(self, prompt: str, text: str) -> str:
        """One line, or several where each but the last ends with a backslash. Raises EOFError."""
        found = self._one(prompt, text)
        while found.endswith("\\"):
            found = found[:-1] + "\n" + self._one("  ", "")
        if self._history is not None and found.strip():
            self._history.append_string(found)
        return found

    def _one(self, prompt: str, text: str) -> str:
        if self._readline:
            import readline

            readline.set_startup_hook(lambda: readline.insert_text(text) if text else None)
            try:
                return input(prompt)
            finally:
                readline.set_startup_hook(None)
        self._err.write(prompt)
        self._err.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")
