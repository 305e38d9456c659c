"""The library door: `load` opens a model, and a `Model` answers from any thread.

    messages, tools, schema --> GenerationRequest               server/protocols/library.py
    EngineThread.submit --> PrefillProgress, Token, Finished    one thread owns MLX
    Token --> Piece, Answer                                     the parser of all doors

What is exported from here is listed in dsv4_mlx/__init__.py.
"""

from __future__ import annotations

import operator
import os
import secrets
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar, cast

from dsv4_mlx.engine.decode import Event as EngineEvent
from dsv4_mlx.engine.decode import PrefillProgress, Token
from dsv4_mlx.engine.engine import score
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.info import check, kernel_facts
from dsv4_mlx.engine.language_model import Logits
from dsv4_mlx.engine.session import Session, SessionSnapshot
from dsv4_mlx.errors import Dsv4Warning, InputError, Progress, UsageError
from dsv4_mlx.hub.models import model_folder
from dsv4_mlx.ops.selftest.choose import choose
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.scheduler.backend import ModelBackend
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.request import GenerationRequest, Unavailable
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols.library import Answer, AnswerEvent, LibraryEncoder, read, shown
from dsv4_mlx.server.protocols.request import ParsedRequest, ServerInfo
from dsv4_mlx.server.translate import Translator
from dsv4_mlx.tokenizer.template import Think

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]

PATIENT = SchedulerOptions(waiting=10_000, patience=365 * 86_400.0)  # who calls in Python waits
LOOK = 5.0  # seconds after which a silent engine thread is looked at


def load(
    model: str | os.PathLike[str],
    *,
    context: int | None = EngineOptions.context,
    expert_memory: str = EngineOptions.expert_memory,
    ops: Literal["auto", "reference"] = "auto",
    numerics: Literal["official", "exact"] = EngineOptions.numerics,
    expert_threads: int | None = EngineOptions.expert_threads,
    verify_reads: bool = EngineOptions.verify_reads,
    wire: Literal["auto", "off"] = EngineOptions.wire,
    progress: Progress | None = None,
) -> Model:
    """Open a model: a converted or official folder, a Hub id already downloaded, or "demo".

    The options are those of the command line. ops "auto": Metal kernels that have proved themselves on this
    machine; which are replaced is warned of (Dsv4Warning). `progress(done, total)` counts bytes and is called
    in another thread. Raises UsageError, InputError, DoesNotFit, MachineError.
    """
    folder, options = resolve(
        model, ops, context=context, expert_memory=expert_memory, numerics=numerics,
        expert_threads=expert_threads, verify_reads=verify_reads, wire=wire,
    )  # fmt: skip
    return Model("demo" if model == "demo" else folder.name, folder, options, progress)


def resolve(model: str | os.PathLike[str], ops: str = "auto", **options: Any) -> tuple[Path, EngineOptions]:
    """The folder of `model` and how to open it, kernels chosen. `options`: fields of EngineOptions.

    Raises UsageError, InputError.
    """
    if not isinstance(model, str | os.PathLike) or not isinstance(os.fspath(model), str):
        raise UsageError(
            f"model is {shown(model)}, expected a str or a Path", next="give a folder, or 'demo'"
        )
    if ops not in ("auto", "reference"):
        raise UsageError(f"ops is {shown(ops)}, expected 'auto' or 'reference'")
    asked = EngineOptions(**options)
    folder = model_folder(os.fspath(model))
    choice = choose("auto" if ops == "auto" else "reference", model=partial(kernel_facts, folder))
    if choice.message is not None:
        warnings.warn(choice.message, Dsv4Warning, stacklevel=3)
    return folder, replace(asked, ops=choice.ops)


class Model:
    """An open model; `load` makes it. Every method may be called from any thread, by several at once.

    One thread owns MLX; calls wait for their turn, and answers are made by turns. Leaving a `with` block, or
    `close`, frees the memory.
    """

    def __init__(
        self, name: str, folder: Path, options: EngineOptions, progress: Progress | None = None
    ) -> None:
        """For `load`: wait until `folder` is open. Raises Dsv4Error."""
        found = check(folder)
        backend = ModelBackend(folder, options)
        thread = _started(backend, progress)
        prompts, context = backend.prompts, backend.context
        facts = ServerInfo(
            ServerOptions(), name, prompts.levels, backend.vocabulary, context, found.config.max_context
        )
        self._end = weakref.finalize(self, thread.close, 0.0)
        self._live: _Live | None = _Live(backend, thread, Translator.of(folder, facts, prompts))
        self._sessions: weakref.WeakSet[ModelSession] = weakref.WeakSet()
        experts = backend.notice or "all experts in memory"
        self._said = f"{name} {found.manifest.recipe}, {experts}, context {context:,}"

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._now.thread.context

    def ask(
        self,
        messages: Messages,
        *,
        think: Think = ServerOptions.think,
        system: str | None = None,
        schema: Any = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        max_tokens: int | None = None,
        sampling: SamplingOptions | None = None,
    ) -> Answer:
        """One answer, whole. Arguments and errors as in `stream`."""
        *_, last = self.stream(
            messages, think=think, system=system, schema=schema, tools=tools, tool_choice=tool_choice,
            max_tokens=max_tokens, sampling=sampling,
        )  # fmt: skip
        return cast(Answer, last)

    def stream(
        self,
        messages: Messages,
        *,
        think: Think = ServerOptions.think,
        system: str | None = None,
        schema: Any = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        max_tokens: int | None = None,
        sampling: SamplingOptions | None = None,
    ) -> Iterator[AnswerEvent]:
        """The events of one answer while it is made: PrefillProgress*, Piece*, and the Answer at the end.

        messages: a question, or messages in the form of Chat Completions. system: a system text before them.
        think: "off", "on" or "max". schema: a JSON Schema as a dict, or a pydantic model, that the answer
        follows. tools, tool_choice: as in Chat Completions. max_tokens: thinking included; None: what the
        context leaves. sampling: its stop strings end the answer; None: the checkpoint's own, a new seed.

        Leaving the loop early cancels the answer. Raises UsageError, InputError at once for what can't be
        asked, DoesNotFit for a prompt without room for an answer; MachineError from the loop.
        """
        if sampling is None:
            sampling = SamplingOptions(seed=secrets.randbits(32))
        if not isinstance(sampling, SamplingOptions):
            raise UsageError(f"sampling is {shown(sampling)}, expected dsv4_mlx.SamplingOptions")
        live = self._now
        ask, job = read(
            live.translator, messages, think, system, schema, sampling,
            tools=tools, tool_choice=tool_choice, max_tokens=max_tokens,
        )  # fmt: skip
        return live.answer(ask, job)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as it is: a marker spelt in it stays text. Raises UsageError, InputError."""
        if not isinstance(text, str):
            raise UsageError(f"text is {shown(text)}, expected a str")
        try:
            return self._now.translator.spelling.encode(text)
        except UnicodeEncodeError as error:
            raise InputError(f"the text can't be encoded: {error}") from None

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, markers as the checkpoint spells them. Raises UsageError, InputError."""
        ids, size = _ids(tokens), self._now.translator.facts.vocabulary
        wrong = next((id for id in ids if not 0 <= id < size), None)
        if wrong is not None:
            raise InputError(f"tokens hold {wrong}, expected ids from 0 to {size - 1}")
        return self._now.translator.spelling.decode(ids)

    def logits(self, tokens: Sequence[int]) -> Logits:
        """float32 [T, V] of T tokens as they are: row t is what the model says after token t.

        V is the vocabulary: 129,280 of the released model, half a megabyte a row. Nothing else is computed
        meanwhile. Raises UsageError, InputError, DoesNotFit.
        """
        ids, live = _ids(tokens), self._now
        return live.call(lambda: score(live.backend.engine, ids))

    def session(self) -> ModelSession:
        """A new, empty token sequence, for those who build their own loop."""
        live = self._now
        return ModelSession(self, live.call(live.backend.session))

    def close(self) -> None:
        """End answers that are being made and all sessions, and free the memory. Again it does nothing."""
        for session in list(self._sessions):
            session.close()
        self._live = None
        self._end()

    @property
    def _now(self) -> _Live:
        if self._live is None:
            raise UsageError("the model is closed", next="load it again")
        return self._live

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self._said}{'' if self._live is not None else ', closed'}>"


class ModelSession:
    """One token sequence and the model's memory of it; `Model.session` makes it.

    Every call is made in the thread that owns MLX, between two steps of answers, and may come from any
    thread; one session is for one caller at a time. As a context manager it ends by giving its memory back.
    """

    def __init__(self, model: Model, session: Session) -> None:
        self._model = model
        self._session: Session | None = session
        model._sessions.add(self)

    @property
    def tokens(self) -> list[int]:
        """The sequence so far."""
        return list(self._held.tokens)

    @property
    def logits(self) -> Logits:
        """float32 [V] after the last token; read-only. Raises UsageError when empty, or after `take_back`."""
        session = self._held
        return self._model._now.call(lambda: session.logits)

    def sync(self, tokens: Sequence[int]) -> Logits:
        """Make `tokens` the sequence; float32 logits [V] after the last. What it shares with the sequence so
        far is kept, the rest is computed. Raises UsageError, InputError, DoesNotFit.
        """
        ids, session = _ids(tokens), self._held
        return self._model._now.call(lambda: session.sync(ids))

    def advance(self, token: int) -> Logits:
        """Append one token; float32 logits [V] after it. Raises UsageError, InputError, DoesNotFit."""
        (id,), session = _ids((token,)), self._held
        return self._model._now.call(lambda: session.advance(id))

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens, at most 8, and the logits. Raises UsageError."""
        (number,), session = _ids((count,), "count"), self._held
        self._model._now.call(lambda: session.take_back(number))

    def fork(self) -> ModelSession:
        """A second session with the same past, independent from now on."""
        return ModelSession(self._model, self._model._now.call(self._held.fork))

    def snapshot(self) -> SessionSnapshot:
        """This point, for `restore`: until the session has gone back before it and written."""
        return self._model._now.call(self._held.snapshot)

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Return to a snapshot of this session. Raises UsageError for one that it does not hold any more."""
        session = self._held
        if not isinstance(snapshot, SessionSnapshot):
            raise UsageError(f"snapshot is {shown(snapshot)}, expected what snapshot() has given")
        self._model._now.call(lambda: session.restore(snapshot))

    def close(self) -> None:
        """Give the memory back. A second time it does nothing."""
        self._session = None

    @property
    def _held(self) -> Session:
        if self._session is None:
            raise UsageError("the session is closed", next="make another: model.session()")
        return self._session

    def __enter__(self) -> ModelSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "closed" if self._session is None else f"{len(self._session.tokens)} tokens"
        return f"<ModelSession of {self._model!r}, {what}>"


@dataclass(frozen=True)
class _Live:
    """What an open model is made of."""

    backend: ModelBackend
    thread: EngineThread
    translator: Translator

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` in the engine's thread. Raises what it raises; Unavailable where that has ended."""
        try:
            return self.thread.call(lambda pool: work()).result()
        except CancelledError:
            raise Unavailable("the model is closed", next="load it again") from None

    def answer(self, ask: ParsedRequest, job: GenerationRequest) -> Iterator[AnswerEvent]:
        """The events of one answer: submitted at the first step, cancelled where the reader leaves."""
        translator, sampled = self.translator, list[int]()
        reader, finished = LibraryEncoder(ask, translator, len(job.prompt)), None
        feed: SimpleQueue[EngineEvent] = SimpleQueue()
        ticket = self.thread.submit(job, feed.put)
        try:
            while finished is None and not reader.over:
                event = self._next(feed)
                if isinstance(event, PrefillProgress):
                    yield event
                    if event.done == event.total:
                        reader.started(event.cached)
                elif isinstance(event, Token):
                    sampled.append(event.id)
                    reader.token(event)
                    yield from reader.taken()
                else:
                    finished = event
        finally:
            ticket.cancel()
        if finished is not None and finished.error is not None:
            raise finished.error
        reader.finish(length=finished is not None and finished.reason == "length")
        yield from reader.taken()
        if finished is not None and finished.reason == "stop":
            translator.turns.remember(job.prompt, sampled, reader.completion(), reader.handle)
        yield reader.whole_turn(len(sampled))

    def _next(self, feed: SimpleQueue[EngineEvent]) -> EngineEvent:
        while True:
            try:
                return feed.get(timeout=LOOK)
            except Empty:
                if self.thread.state == "closed":
                    raise Unavailable("the model is closed", next="load it again") from None


def _started(backend: ModelBackend, progress: Progress | None) -> EngineThread:
    """The thread, once the model is open in it. Raises what kept it from opening."""
    known = threading.Event()

    def watch() -> None:
        if thread.state != "loading":
            known.set()
        elif progress is not None:
            progress(*thread.loaded)

    thread = EngineThread(backend, PATIENT, watch=watch)
    thread.start()  # not above: it may fail, and say so to `watch`, before the name is bound
    try:
        known.wait()
        if thread.error is not None:
            raise thread.error
    except BaseException:
        thread.close(0.0)
        raise
    return thread


def _ids(given: Any, name: str = "tokens") -> list[int]:
    """Whole numbers as Python's own, numpy's too. Raises UsageError."""
    try:
        if isinstance(given, str | bytes) or any(isinstance(one, bool) for one in given):
            raise TypeError
        return [operator.index(one) for one in given]
    except TypeError:
        raise UsageError(f"{name} is {shown(given)}, expected whole numbers") from None
