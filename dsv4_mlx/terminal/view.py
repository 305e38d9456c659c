"""What the chat needs of whatever shows it: a drawn terminal (screen.py) or lines of text (plain.py)."""

from __future__ import annotations

from typing import Protocol

from dsv4_mlx.terminal.answering import AnswerInProgress
from dsv4_mlx.terminal.chat_engine import Kind
from dsv4_mlx.terminal.conversation import Conversation


class View(Protocol):
    def note(self, text: str) -> None:
        """A line from the chat itself."""

    def problem(self, text: str) -> None:
        """Something went wrong; the chat goes on."""

    def question(self, text: str) -> None:
        """What the person asked, as part of the record."""

    def begin(self, answering: AnswerInProgress) -> None:
        """An answer begins."""

    def said(self, kind: Kind, text: str) -> None:
        """The answer goes on."""

    def end(self, answering: AnswerInProgress) -> None:
        """The answer is over, however it ended."""

    def put_back(self, text: str) -> None:
        """Text the person may change and send again."""

    def replay(self, conversation: Conversation) -> None:
        """Show a stored conversation."""

    def wipe(self) -> None:
        """Forget what is on the screen."""

    def escape(self, sequence: str) -> None:
        """Send a control sequence, where there is a terminal that understands it."""

    def leave(self, code: int) -> None:
        """End the program."""
