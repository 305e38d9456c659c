"""The one-line displays: the status line, and how far loading or reading the prompt is.

The thinking pane: the last lines while it runs, all of it when it is opened.
"""

from __future__ import annotations

import time

from dsv4_mlx.machine.units import duration, rate, size, speed
from dsv4_mlx.terminal.chat import Chat
from dsv4_mlx.terminal.paint import Painter, fitted


class ThinkingLine:
    """Thinking as wrapped lines; only the last paragraph is wrapped again as text comes."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self.source = ""
        self._lines: list[str] = []
        self._open = ""

    def feed(self, text: str) -> None:
        self.source += text
        self._open += text

    def at(self, painter: Painter) -> ThinkingLine:
        pane = ThinkingLine(painter)
        pane.feed(self.source)
        return pane

    def lines(self) -> list[str]:
        """All lines so far."""
        wrapped = self.painter.wrapped(self._open)
        if len(wrapped) > 1:
            # Lines but the last are settled: greedy wrapping never moves them again.
            last = wrapped[-1]
            self._lines += wrapped[:-1]
            at = self._open.rfind(last) if last else len(self._open)
            self._open = self._open[at:]
            wrapped = [last]
        return [*self._lines, *wrapped] if self.source else []


BAR = 20


def status(chat: Chat, width: int) -> str:
    """Context, speeds and memory; what does not fit is left out from the right."""
    answering = chat.answering or chat.finished
    if chat.info is None:
        return fitted(["loading", *_waiting(chat)], width)
    used = chat.answering.context if chat.answering else chat.used
    parts = [f"{used:,}/{chat.info.context:,} tokens"]
    parts += _waiting(chat)
    if answering is not None:
        parts.append(f"prefill {rate(answering.prefill_rate)} tok/s")
        parts.append(f"decode {rate(answering.decode_rate)} tok/s")
        if answering.memory:
            parts.append(size(answering.memory))
        if answering.experts:
            parts.append(answering.experts)
    parts.append(f"think {chat.conversation.think}")
    if chat.attachments:
        parts.append(f"{len(chat.attachments)} file{'s' if len(chat.attachments) > 1 else ''} attached")
    return fitted(parts, width)


def progress(chat: Chat, width: int) -> str | None:
    """How far loading, or reading the prompt, is; None once the model speaks."""
    if chat.info is None:
        return _loading(chat, width)
    answering = chat.answering
    if answering is None or not answering.silent or answering.message.tokens:
        return None
    if answering.stopping:
        return fitted(["stopping at the end of this step ..."], width)
    total, done = answering.prefill_total, answering.prefill_done
    if not total:
        return fitted([f"reading the prompt: {answering.prompt_tokens:,} tokens"], width)
    parts = [f"reading the prompt {_bar(done, total, width)} {done:,}/{total:,} tokens"]
    parts.append(f"{rate(answering.prefill_rate)} tok/s")
    if answering.prefill_left is not None and done < total:
        parts.append(f"{duration(answering.prefill_left)} left")
    return fitted(parts, width)


def _loading(chat: Chat, width: int) -> str:
    loading = chat.loading
    if loading is None or not loading.total:
        return fitted(["opening the model"], width)
    seconds = max(time.monotonic() - chat.load_started, 1e-6)
    reached = loading.done / seconds
    parts = [
        f"loading {_bar(loading.done, loading.total, width)} {size(loading.done)}/{size(loading.total)}",
        speed(reached),
    ]
    if reached and loading.done < loading.total:
        parts.append(f"{duration((loading.total - loading.done) / reached)} left")
    return fitted(parts, width)


def _bar(done: int, total: int, width: int) -> str:
    if width < 60:
        return f"{done * 100 // total}%"
    full = done * BAR // total
    return "━" * full + "╌" * (BAR - full)


def _waiting(chat: Chat) -> list[str]:
    return [f"{len(chat.waiting)} waiting"] if chat.waiting else []
