"""A chat without a terminal: what it showed is a list."""

from __future__ import annotations

import time
from pathlib import Path

from dsv4_mlx.machine.awake import Awake
from dsv4_mlx.terminal.answering import AnswerInProgress
from dsv4_mlx.terminal.chat import Chat, ChatOptions
from dsv4_mlx.terminal.chat_engine import Kind
from dsv4_mlx.terminal.commands import SlashCommands
from dsv4_mlx.terminal.conversation import Conversation
from dsv4_mlx.terminal.store import ConversationStore
from terminal.scenes import SCENES
from terminal.scripted import Scripted


class Shown:
    """A View that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.questions: list[str] = []
        self.back = ""
        self.replayed = 0
        self.wiped = 0
        self.escapes: list[str] = []
        self.code: int | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def question(self, text: str) -> None:
        self.questions.append(text)

    def begin(self, answering: AnswerInProgress) -> None: ...

    def said(self, kind: Kind, text: str) -> None: ...

    def end(self, answering: AnswerInProgress) -> None: ...

    def put_back(self, text: str) -> None:
        self.back = text

    def replay(self, conversation: Conversation) -> None:
        self.replayed += 1

    def wipe(self) -> None:
        self.wiped += 1

    def escape(self, sequence: str) -> None:
        self.escapes.append(sequence)

    def leave(self, code: int) -> None:
        self.code = code


class Talk:
    """A chat with a scripted engine, driven line by line."""

    def __init__(
        self, folder: Path, scene: str = "quick", resume: str | None = None, awake: Awake | None = None
    ) -> None:
        self.shown = Shown()
        self.engine: Scripted = SCENES[scene]()
        options = ChatOptions("scripted", seed=1, resume=resume, report=lambda detail: "LOG")
        store = ConversationStore(folder / "chats")
        self.chat = Chat(
            self.engine,
            store,
            self.shown,
            options,
            SlashCommands(),
            awake or Awake(platform="none"),
        )
        self.chat.start()
        self.settle()

    def settle(self) -> None:
        """Until the engine has nothing to do."""
        end = time.monotonic() + 20
        while self.chat.busy and self.shown.code is None:
            self.chat.pump()
            time.sleep(0.001)
            assert time.monotonic() < end

    def says(self, line: str) -> None:
        self.chat.submit(line)
        self.settle()

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.chat.conversation.messages]
