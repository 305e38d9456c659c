"""What a line of input does: a question is asked, a command is run. Knows no screen and no model."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Protocol

from dsv4_mlx.errors import EXIT_BUG, EXIT_INTERRUPT, DoesNotFit, Dsv4Error
from dsv4_mlx.machine.awake import Awake
from dsv4_mlx.terminal.answering import AnswerInProgress
from dsv4_mlx.terminal.attach import Attachment, clean
from dsv4_mlx.terminal.chat_engine import (
    AnswerPiece,
    ChatEngine,
    ChatMessage,
    ChatRequest,
    Counted,
    Ended,
    EngineInfo,
    EngineOpened,
    Event,
    Failed,
    Loading,
    Prefilling,
    Recalled,
    Think,
)
from dsv4_mlx.terminal.conversation import Conversation, Message
from dsv4_mlx.terminal.store import ConversationStore
from dsv4_mlx.terminal.view import View


@dataclass(frozen=True)
class ChatOptions:
    """How a chat starts. `report` writes a bug's traceback to a file and returns its path."""

    model: str
    system: str = ""
    think: Think = "on"
    seed: int | None = None
    resume: str | None = None
    greets: bool = True
    report: Callable[[str], str] = field(default=lambda detail: "")


class Commands(Protocol):
    """The lines that are no questions."""

    def known(self, text: str) -> bool:
        """Whether a line is meant as a command."""

    def immediate(self, text: str) -> bool:
        """Whether it runs even while the model is busy."""

    def run(self, chat: Chat, text: str) -> None:
        """Run it; what goes wrong is said."""


class Chat:
    """One conversation after another with one model. Used from one thread; `pump` takes in events."""

    def __init__(
        self,
        engine: ChatEngine,
        store: ConversationStore,
        view: View,
        options: ChatOptions,
        commands: Commands,
        awake: Awake | None = None,
    ) -> None:
        self.engine, self.store, self.view, self.options = engine, store, view, options
        self.commands = commands
        self.awake = awake or Awake()
        self.conversation = Conversation.new(options.system, options.think)
        self.conversation.model = options.model
        self.info: EngineInfo | None = None
        self.loading: Loading | None = None
        self.load_started = time.monotonic()
        self.answering: AnswerInProgress | None = None
        self.finished: AnswerInProgress | None = None  # the last answer, for its figures
        self.used = 0  # tokens of the conversation, as far as known
        self.waiting: deque[str] = deque()  # lines typed while busy
        self.attachments: list[Attachment] = []
        self.offer: Callable[[], None] | None = None  # what "yes" would do
        self.taken_back: str | None = None
        self.failure: BaseException | None = None  # why the model could not be opened
        self.leaving = False
        self.code = 0  # of the last answer: what a one-off question exits with
        self._unsaved = ""
        self._tries = 0

    @property
    def busy(self) -> bool:
        return self.info is None or self.answering is not None

    def start(self) -> None:
        """Begin to open the model, and take up the conversation that was asked for. Raises InputError."""
        if self.options.resume is not None:
            self.conversation = self.store.load(self.store.find(self.options.resume))
            if self.options.system:
                self.conversation.system = self.options.system
            self._follow(self.conversation)
        self.awake.on()
        self.engine.start()
        if self.options.resume is not None:
            self.take_up()
            self.view.replay(self.conversation)
        self.tell_problems()

    # -- input ---------------------------------------------------------------------------------------

    def submit(self, text: str) -> None:
        """A line the person sent. While the model is busy it waits, in order."""
        text = clean(text)
        if not text.strip():
            return
        if self.busy and not self.commands.immediate(text):
            self.waiting.append(text)
        else:
            self._process(text)

    def submit_text(self, text: str) -> None:
        """A question as it is: a / at its beginning means nothing."""
        self.submit(f" {text}" if text.startswith("/") else text)

    def _process(self, text: str) -> None:
        offer, self.offer = self.offer, None
        if offer is not None and text.strip().lower() in ("y", "yes"):
            offer()
        elif self.commands.known(text):
            self.commands.run(self, text.strip())
        else:
            self.ask(text)

    def interrupt(self) -> bool:
        """Ctrl-C. Whether there was something to stop."""
        if self.info is None:
            self.engine.stop()
            return True
        if self.answering is None:
            return False
        self.answering.stopping = True
        self.engine.stop()
        if self.waiting:
            self.view.put_back("\n".join(self.waiting))
            self.waiting.clear()
        return True

    def ask(self, text: str) -> None:
        """Ask the model; earlier attachments go before the question."""
        full = "\n".join([*(a.prompt() for a in self.attachments), text])
        conversation = self.conversation
        conversation.messages.append(Message("user", full))
        try:
            tokens = self.engine.count(conversation.spoken(), conversation.think)
            limit = self.info.context if self.info else 0
            if tokens >= limit:
                raise _too_long(tokens, limit)
        except Dsv4Error as error:
            conversation.take_back()
            self.code = error.exit_code
            self.view.problem(str(error))
            self.view.put_back(text)
            return
        self.attachments.clear()
        self.taken_back = None
        self.view.question(text)
        self.save()
        self.used = tokens
        seed = secrets.randbits(32) if self.options.seed is None else self.options.seed + self._tries
        self.answering = AnswerInProgress(full, tokens)
        self.awake.on()
        self.view.begin(self.answering)
        self.engine.ask(ChatRequest(conversation.spoken(), conversation.think, seed))

    def retry(self, text: str) -> None:
        """Ask again, and draw differently."""
        self._tries += 1
        self.ask(text)

    def count(self, text: str = "") -> int:
        """Tokens of the conversation as it stands, with what is attached and `text` after it."""
        extra = "\n".join([*(a.prompt() for a in self.attachments), text])
        more = (ChatMessage("user", extra),) if extra.strip() else ()
        spoken = (*self.conversation.spoken(), *more)
        return self.engine.count(spoken, self.conversation.think) if spoken else 0

    # -- the conversation ----------------------------------------------------------------------------

    def save(self) -> None:
        """Store the conversation; a failure is said once and the chat goes on."""
        if not self.conversation.messages:
            return
        self.conversation.updated = time.time()
        try:
            self.store.save(self.conversation)
        except Dsv4Error as error:
            if str(error) != self._unsaved:
                self.view.problem(str(error))
            self._unsaved = str(error)
        else:
            if self._unsaved:
                self.view.note("the conversation is saved again")
            self._unsaved = ""
        self.tell_problems()

    def change_to(self, conversation: Conversation) -> None:
        """Leave this conversation for another."""
        self.put_away()
        self.conversation = conversation
        self.attachments.clear()
        self.finished, self.used, self.taken_back, self._tries = None, 0, None, 0

    def _follow(self, taken_up: Conversation) -> None:
        """A conversation goes on with this model, whoever answered before."""
        before = Path(taken_up.model).name
        if before and taken_up.model != self.options.model:
            self.view.note(f"it was answered by {before}; {Path(self.options.model).name} goes on with it")
        taken_up.model = self.options.model

    def put_away(self) -> None:
        """What was computed for the conversation may be kept on disk."""
        left = self.conversation
        if left.messages and self.info is not None:
            self.engine.keep(left.key, left.spoken(), left.think)

    def take_up(self) -> None:
        """What was kept on disk for the conversation may be read back."""
        self.engine.recall(self.conversation.key)

    def tell_problems(self) -> None:
        for problem in self.store.take_problems():
            self.view.problem(problem)

    def quit(self) -> None:
        """End; a running answer is stopped and what it said is kept."""
        self.leaving = True
        if self.answering is not None:
            self.interrupt()
        else:
            self.view.leave(0 if self.info is not None else EXIT_INTERRUPT)

    def close(self) -> None:
        """Let the engine's thread end. Called once, after the view has gone."""
        self.put_away()
        self.engine.close(30.0)
        self.awake.off()

    # -- what the engine says ------------------------------------------------------------------------

    def pump(self) -> bool:
        """Take in what has happened; whether anything has."""
        happened = False
        while True:
            try:
                event = self.engine.events.get_nowait()
            except Empty:
                return happened
            happened = True
            self.take(event)

    def take(self, event: Event) -> None:
        if isinstance(event, Loading):
            self.loading = event
        elif isinstance(event, EngineOpened):
            self._opened(event.info)
        elif isinstance(event, Failed):
            self._failed(event)
        elif isinstance(event, Recalled):
            if event.tokens:
                self.view.note(f"{event.tokens:,} tokens restored from disk")
        elif self.answering is not None:
            self._heard(event, self.answering)

    def _opened(self, info: EngineInfo) -> None:
        self.info = info
        self.awake.off()
        if self.options.greets:
            self.view.note(f"{info.greeting}; /help lists the commands")
        if info.notice:
            self.view.note(info.notice)
        if self.conversation.messages:
            self.used = self.count()
        self._next()

    def _failed(self, event: Failed) -> None:
        self.awake.off()
        self.failure = event.error
        self.view.leave(EXIT_INTERRUPT)

    def _heard(self, event: Prefilling | AnswerPiece | Counted | Ended, answering: AnswerInProgress) -> None:
        answering.take(event)
        if isinstance(event, AnswerPiece):
            self.view.said(event.kind, event.text)
        if isinstance(event, Ended):
            self._ended(event, answering)

    def _ended(self, event: Ended, answering: AnswerInProgress) -> None:
        self.awake.off()
        self.answering, self.finished = None, answering
        self.used = answering.kept
        self.view.end(answering)
        if answering.silent and event.how in ("interrupted", "error"):
            self.conversation.take_back()
            self.taken_back = answering.question
            if not self.leaving:
                self.view.put_back(answering.question)
        else:
            self.conversation.messages.append(answering.message)
        self.save()
        self.code = EXIT_INTERRUPT if event.how == "interrupted" else 0
        if event.error is not None and isinstance(event.error, Dsv4Error):
            self.code = event.error.exit_code
            self.view.problem(str(event.error))
        elif event.error is not None:
            self.code = EXIT_BUG
            self._bug(event.error, event.detail)
        if self.leaving:
            self.view.leave(0)
        else:
            self._next()

    def _next(self) -> None:
        while self.waiting and not self.busy and not self.leaving:
            self._process(self.waiting.popleft())

    def _bug(self, error: BaseException, detail: str) -> None:
        log = self.options.report(detail)
        self.view.problem(
            f"this is a bug in dsv4-mlx: {type(error).__name__}: {error}"
            + (f"\n  next: please report it with the file {log}" if log else "")
        )


def _too_long(tokens: int, limit: int) -> DoesNotFit:
    return DoesNotFit(
        f"the conversation would have {tokens:,} tokens, {tokens - limit + 1:,} more than the context of "
        f"{limit:,} leaves room for",
        next="/undo takes the last exchange back, /clear starts anew; or restart with a larger --context",
    )
