"""The answer under way: what was said so far, and its figures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from dsv4_mlx.machine.units import duration, rate, size
from dsv4_mlx.terminal.chat_engine import AnswerPiece, Counted, Ended, Prefilling
from dsv4_mlx.terminal.conversation import Message

ENDINGS = {
    "stop": "ended by the model",
    "length": "cut off by the limit of tokens",
    "interrupted": "stopped by you",
    "error": "ended by an error",
}


def thought(answering: AnswerInProgress) -> str:
    """The line that thinking collapses to."""
    return f"thought for {duration(answering.thinking_for)}, {answering.message.thinking_tokens:,} tokens"


def stats(answering: AnswerInProgress) -> str:
    message = answering.message
    lines = [
        f"prompt    {answering.prompt_tokens:,} tokens: {answering.reused:,} known already, "
        f"{answering.prefill_done:,} computed at {rate(answering.prefill_rate)} tokens/s",
        f"answer    {message.tokens:,} tokens at {rate(answering.decode_rate)} tokens/s, "
        f"{ENDINGS[message.ending]}",
    ]
    if message.thinking:
        lines.append(f"thinking  {duration(message.thinking_seconds)}, {message.thinking_tokens:,} tokens")
    if answering.first_token is not None:
        lines.append(f"waited    {duration(answering.first_token - answering.started)} for the first token")
    if answering.memory:
        lines.append(f"memory    {size(answering.memory)}")
    if answering.experts:
        lines.append(f"experts   {answering.experts.removeprefix('experts ')}")
    return "\n".join(lines)


@dataclass
class AnswerInProgress:
    """Takes in the engine's events. Times are of the monotonic clock; `context` includes the prompt."""

    question: str
    prompt_tokens: int
    started: float = field(default_factory=time.monotonic)
    message: Message = field(default_factory=lambda: Message("assistant", ""))
    prefill_done: int = 0
    prefill_total: int = 0
    reused: int = 0
    prefill_ended: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    answer_began: float | None = None
    memory: int = 0
    experts: str = ""
    stopping: bool = False

    def take(self, event: Prefilling | AnswerPiece | Counted | Ended) -> None:
        if isinstance(event, Prefilling):
            self.prefill_done, self.prefill_total, self.reused = event.done, event.total, event.reused
            self.prefill_ended = event.at
        elif isinstance(event, AnswerPiece):
            self._said(event)
        elif isinstance(event, Counted):
            self.first_token = self.first_token or event.at
            self.last_token = event.at
            self.message.tokens = event.tokens
            self.memory = event.memory or self.memory
            self.experts = event.experts or self.experts
            if self.answer_began is None:
                self.message.thinking_tokens = event.tokens
        else:
            self._end(event.at)
            self.message.ending = event.how

    def _said(self, event: AnswerPiece) -> None:
        if event.kind == "thinking":
            self.message.thinking += event.text
            return
        if self.answer_began is None:
            self._end(event.at)
            self.answer_began = event.at
        if event.kind == "answer":
            self.message.text += event.text
        else:
            self.message.tools += event.text

    def _end(self, at: float) -> None:
        """Thinking is over, if it was not already."""
        if self.answer_began is None and self.message.thinking:
            self.message.thinking_seconds = at - (self.prefill_ended or self.started)
        elif self.answer_began is None:
            self.message.thinking_tokens = 0

    @property
    def silent(self) -> bool:
        """Whether nothing has been said yet."""
        return not (self.message.text or self.message.thinking or self.message.tools)

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.message.tokens

    @property
    def kept(self) -> int:
        """Tokens that the next question finds: thinking is not repeated to the model."""
        return self.context - self.message.thinking_tokens

    @property
    def thinking_for(self) -> float:
        """Seconds of thinking, so far or in all."""
        if self.message.thinking_seconds:
            return self.message.thinking_seconds
        return time.monotonic() - (self.prefill_ended or self.started)

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens computed per second."""
        if not self.prefill_done or self.prefill_ended is None:
            return None
        return self.prefill_done / max(self.prefill_ended - self.started, 1e-6)

    @property
    def prefill_left(self) -> float | None:
        """Seconds until the prompt is computed."""
        rate = self.prefill_rate
        return None if rate is None else (self.prefill_total - self.prefill_done) / rate

    @property
    def decode_rate(self) -> float | None:
        """Tokens said per second."""
        if self.first_token is None or self.last_token is None or self.message.tokens < 2:
            return None
        return (self.message.tokens - 1) / max(self.last_token - self.first_token, 1e-6)
