"""The engine as the terminal chat wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dsv4_mlx.chat.answer import Answer
from dsv4_mlx.engine import Engine, EngineOptions, SamplingOptions, Session, generate
from dsv4_mlx.engine.machine import memory_in_use
from dsv4_mlx.terminal.speaker import Asked, Facts, Listener, Progress, Role, Spoken, Think


class EngineSpeaker:
    """A Speaker: one Engine and one Session, made and used in the thread that calls `open`."""

    def __init__(
        self,
        folder: Path,
        options: EngineOptions,
        sampling: SamplingOptions,
        max_tokens: int | None,
    ) -> None:
        self._folder, self._options = folder, options
        self._sampling, self._max_tokens = sampling, max_tokens
        self._engine: Engine | None = None
        self._session: Session | None = None

    def open(self, progress: Progress) -> Facts:
        self._engine = Engine.open(self._folder, self._options, progress)
        self._session = self._engine.session()
        return Facts(self._folder.name, self._engine.context)

    def count(self, messages: Sequence[Spoken], think: Think) -> int:
        engine, _ = self._opened()
        prompts = engine.prompts
        return len(prompts.encode(prompts.talk(_pairs(messages), think)))

    def memory(self) -> int:
        return memory_in_use()

    def reply(self, asked: Asked, listener: Listener) -> Literal["stop", "length"]:
        engine, session = self._opened()
        conversation = engine.prompts.talk(_pairs(asked.messages), asked.think)
        prompt = engine.prompts.encode(conversation)
        answer = Answer(conversation, engine.prompts.tokenizer)
        room = session.room_after(prompt)
        limit = room if self._max_tokens is None else min(room, self._max_tokens)

        def prefill(done: int, total: int) -> None:
            listener.prefill(done, total, session.reused)

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

    def keep(self, key: str, messages: Sequence[Spoken], think: Think) -> None:
        """Nothing is kept: a conversation that is taken up again is prefilled."""

    def recall(self, key: str) -> int:
        return 0

    def _opened(self) -> tuple[Engine, Session]:
        if self._engine is None or self._session is None:
            raise RuntimeError("the model is not open yet")
        return self._engine, self._session


def _seeded(sampling: SamplingOptions, seed: int) -> SamplingOptions:
    return replace(sampling, seed=seed)


def _pairs(messages: Sequence[Spoken]) -> list[tuple[Role, str]]:
    return [(message.role, message.text) for message in messages]
