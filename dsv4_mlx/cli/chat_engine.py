"""The engine as the terminal chat wants it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dsv4_mlx.engine import session_file as saved
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.engine.session import Session
from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.machine.limits import memory_in_use
from dsv4_mlx.terminal.chat_engine import (
    ChatMessage,
    ChatRequest,
    EngineInfo,
    Progress,
    Role,
    StreamCallbacks,
    Think,
)
from dsv4_mlx.tokenizer.output_parser import AnswerParser

READING = 0.5e9  # bytes a second that a disk reads at least, and that are checked
LONG = 256  # tokens of a prefill that say how fast prefill is
KEPT = 8  # saved states


class SessionChatEngine:
    """A Speaker: one Engine and one Session, made and used in the thread that calls `open`.

    `states`: the folder for saved states; None keeps none.
    """

    def __init__(
        self,
        folder: Path,
        options: EngineOptions,
        sampling: SamplingOptions,
        max_tokens: int | None,
        states: Path | None = None,
    ) -> None:
        self._folder, self._options = folder, options
        self._sampling, self._max_tokens = sampling, max_tokens
        self._states, self._who = states, ""
        self._rate = 0.0  # tokens a second that the last long prefill computed
        self._engine: Engine | None = None
        self._session: Session | None = None

    def open(self, progress: Progress) -> EngineInfo:
        self._engine = Engine.open(self._folder, self._options, progress)
        self._session = self._engine.session()
        self._who = saved.identity(self._engine.manifest, self._options, self._session)
        return EngineInfo(self._folder.name, self._engine.context, self._engine.expert_memory)

    def count(self, messages: Sequence[ChatMessage], think: Think) -> int:
        engine, _ = self._opened()
        prompts = engine.prompts
        return len(prompts.encode(prompts.talk(_pairs(messages), think)))

    def memory(self) -> int:
        return memory_in_use()

    def experts(self) -> str:
        pager = self._engine.pager if self._engine is not None else None
        return "" if pager is None else pager.recently()

    def reply(self, asked: ChatRequest, listener: StreamCallbacks) -> Literal["stop", "length"]:
        engine, session = self._opened()
        conversation = engine.prompts.talk(_pairs(asked.messages), asked.think)
        prompt = engine.prompts.encode(conversation)
        answer = AnswerParser(conversation, engine.prompts.tokenizer)
        room = session.room_after(prompt)
        limit = room if self._max_tokens is None else min(room, self._max_tokens)

        started = time.monotonic()

        def prefill(done: int, total: int) -> None:
            if done >= LONG:
                self._rate = done / (time.monotonic() - started)
            listener.prefill(done, total, session.reused)

        session.between = listener.between
        count = 0
        options = _seeded(self._sampling, asked.seed)
        for token in generate(session, prompt, options, max_tokens=limit, progress=prefill):
            count += 1
            for piece in answer.push(token):
                listener.piece(piece.kind, piece.text)
            listener.token()
        cut = count == limit
        for piece in answer.finish(length=cut):
            listener.piece(piece.kind, piece.text)
        return "length" if cut else "stop"

    def keep(self, key: str, messages: Sequence[ChatMessage], think: Think) -> None:
        """Save the state where reading it back is much cheaper than prefilling again."""
        if self._states is None or self._session is None or not self._rate:
            return
        session, prompts = self._session, self._opened()[0].prompts
        with suppress(OSError, RuntimeError, Dsv4Error):
            following = [*_pairs(messages), ("user", "?")]
            length = saved.point_to_save(session, prompts.encode(prompts.talk(following, think)))
            if not length:
                return
            reading = saved.saved_bytes(session, length) / READING
            if length / self._rate < 2 * reading + 1:
                return
            self._states.mkdir(parents=True, exist_ok=True, mode=0o700)
            saved.save(session, length, self._states / f"{key}.safetensors", self._who)
            saved.prune(self._states, KEPT)

    def recall(self, key: str) -> int:
        if self._states is None or self._session is None:
            return 0
        return saved.load(self._session, self._states / f"{key}.safetensors", self._who)

    def _opened(self) -> tuple[Engine, Session]:
        if self._engine is None or self._session is None:
            raise RuntimeError("the model is not open yet")
        return self._engine, self._session


def _seeded(sampling: SamplingOptions, seed: int) -> SamplingOptions:
    return replace(sampling, seed=seed)


def _pairs(messages: Sequence[ChatMessage]) -> list[tuple[Role, str]]:
    return [(message.role, message.text) for message in messages]
